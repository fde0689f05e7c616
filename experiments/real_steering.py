"""A real chat model with steering vectors, computed from its own replies and scored by the same rule.

    python experiments/real_steering.py --replies real/replies --output_dir real/steering --data DATA \\
        --backbone smollm2 --page docs/results/real_model.md

Layers and directions were not searched: all that were tried are in the table. What is done is skipped.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evidence_answers import answered, base_of
from evidence_figures import compared
from evidence_script import circumstances, parsed, publish, same_arguments
from evidence_tables import markdown
from evidence_worlds import Asked
from real_prompts import COLUMNS, cells
from real_world import Questions

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.replies import RULES
from dual_head.train.run import RunOptions, train_guide

# By name: options of `dual-head train steering` beside a decoder of 30 layers.
VECTORS: Mapping[str, Mapping[str, Any]] = {
    "the middle layer": {"layers": [15]},
    "its principal direction": {"layers": [15], "direction": "pca"},
    "of the reply's tokens alone": {"layers": [15], "tokens": "reply"},
    "three layers": {"layers": [10, 15, 20]},
}
SMALL = {"prompts": 2, "new_tokens": 4, "max_pairs": 4}


def fitted(world: Questions, options: Mapping[str, Any], folder: Path, max_pairs: int | None) -> str:
    """The folder of the vectors, computed where they are not there."""
    if not (folder / "report.json").is_file():
        train_guide(
            method("steering").with_options(options),
            RunOptions(
                model_name_or_path=world.backbone, dataset_name=str(world.pairs(world.about, 0)), held_out=0.05,
                max_length=world.max_length, max_pairs=max_pairs,
            ),
            GuideTrainingArguments(output_dir=str(folder)),
        )  # fmt: skip
    return str(folder)


def measured(world: Questions, questions: Sequence[Asked], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of every set of vectors: {name: {alpha: figures}}."""
    base = answered(folder / "base.jsonl", world, questions, (0.0,), seed=args.seed, model=lambda: base_of(world))
    figures: dict[str, Any] = {"the backbone": compared([base], [base], ["0"])}
    for name, options in VECTORS.items():
        place = folder / name.replace(" ", "-").replace("'", "")
        vectors = fitted(world, options, place, args.max_pairs)
        model = partial(AlignedModel.from_pretrained, vectors, dtype=world.dtype)
        rows = answered(place / "test.jsonl", world, questions, args.alphas, seed=args.seed, model=model)
        figures[name] = compared([rows], [base], [f"{alpha:g}" for alpha in args.alphas])
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each set of vectors and strength."""
    rows = [
        ["" if i else name, *cells(alpha, x, reference=name == "the backbone")]
        for name, at in figures.items()
        for i, (alpha, x) in enumerate(at.items())
    ]
    return markdown(["vectors", "alpha", "mean", "gain over the backbone (95%)", *COLUMNS], rows)


def main() -> None:
    """Compute, answer, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=Path, required=True, help="folder that real_replies.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="the chat model of the replies")
    parser.add_argument("--rule", choices=tuple(RULES), default="concise")
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--max_pairs", type=int, help="of the replies; default: all")
    parser.add_argument("--prompts", type=int, default=40, help="questions")
    parser.add_argument("--new_tokens", type=int, help="longest reply; default: that of the other guides' page")
    parser.add_argument("--dtype", default="auto", help="of the backbone that answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    args = parsed(parser, SMALL)
    same_arguments(args)
    world = Questions(
        folder=args.output_dir / args.rule, replies=args.replies, data=args.data, about=args.rule, dtype=args.dtype,
        backbone=str(Path(args.backbone).resolve()),
    )  # fmt: skip
    world = world.shortened(args.new_tokens)
    figures = measured(world, world.asked("test", args.prompts), world.folder, args)
    about = circumstances() | {"rule": args.rule, "prompts": args.prompts, "seed": args.seed}
    publish(
        world.folder, {"about": about, "at": figures}, {"real-steering": table(figures)}, args.page,
        name="real-steering",
    )  # fmt: skip


if __name__ == "__main__":
    main()
