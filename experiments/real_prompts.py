"""A real chat model guided by a contrast of system prompts, scored by a rule, beside the same prompt in the request.

    python experiments/real_prompts.py --output_dir real/prompts --data DATA --backbone smollm2 \\
        --page docs/results/real_model.md

Each rule has one pair of prompts, which was not searched. No guide here is trained. What is done is skipped.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence_answers import Row, answered, base_of
from evidence_figures import compared
from evidence_script import circumstances, parsed, publish
from evidence_tables import markdown
from evidence_worlds import Asked
from real_world import Questions

from dual_head import AlignedModel, PromptContrastConfig
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import RULES

PROMPTS = {
    "concise": ("You answer as briefly as you can, in a few words.", "You answer at great length, with every detail."),
    "positive": (
        "You are cheerful and enthusiastic, and see the good in everything.",
        "You are gloomy and bitter, and see the bad in everything.",
    ),
}
ALPHAS = (1.0, 2.0)
SMALL = {"prompts": 2, "new_tokens": 4}


def contrast(world: Questions) -> AlignedModel:
    """The backbone with the rule's prompts as a guide."""
    positive, negative = PROMPTS[world.about]
    model = AlignedModel.from_backbone(world.backbone, {}, tokenizer=load_tokenizer(world.backbone))
    model.attach("prompts", PromptContrastConfig(positive=positive, negative=negative))
    return model


def under(asked: Sequence[Asked], system: str) -> list[Asked]:
    """The same questions with a system prompt."""
    return [replace(one, prompt=[{"role": "system", "content": system}, *one.prompt]) for one in asked]


def measured(world: Questions, asked: Sequence[Asked], folder: Path, seed: int) -> dict[str, Any]:
    """Every system's figures: {system: {alpha: figures}}."""
    common: dict[str, Any] = {"seed": seed}
    base = answered(folder.parent / "base.jsonl", world, asked, (0.0,), model=lambda: base_of(world), **common)
    prompted = under(asked, PROMPTS[world.about][0])
    system = answered(folder / "system.jsonl", world, prompted, (0.0,), model=lambda: base_of(world), **common)
    rows: list[Row] = answered(
        folder / "one-prompt-less-the-other.jsonl", world, asked, ALPHAS, model=lambda: contrast(world), **common
    )
    return {
        "the request": compared([base], [base], ["0"]),
        "the positive prompt in the request": compared([system], [base], ["0"]),
        "the positive prompt less the negative": compared([rows], [base], [f"{alpha:g}" for alpha in ALPHAS]),
    }


COLUMNS = ("tokens", "diversity", "KL", "ended by itself")


def cells(alpha: str, x: Mapping[str, Any], *, reference: bool) -> list[str]:
    """Strength, mean, gain and what else moved, of one system; without a gain for what the others are compared with."""
    gain = f"{x['gain']:+.2f} ({x['interval'][0]:+.2f} to {x['interval'][1]:+.2f})"
    unguided = alpha == "0"
    return [
        "" if unguided else alpha, f"{x['reward']:.2f}", "" if reference else gain, f"{x['tokens']:.1f}",
        f"{x['diversity']:.2f}", "" if unguided else f"{x['kl']:.2f}", f"{100 * x['finished']:.0f}%",
    ]  # fmt: skip


def table(figures: dict[str, dict[str, Any]]) -> str:
    """A row for each rule, system and strength."""
    rows = []
    for rule, systems in figures.items():
        for name, at in systems.items():
            first = name == "the request"
            title = f"{rule} ({RULES[rule].unit})" if first else ""
            rows += [[title, name, *cells(alpha, x, reference=first)] for alpha, x in at.items()]
    return markdown(["rule", "system", "alpha", "mean", "gain over the request (95%)", *COLUMNS], rows)


def main() -> None:
    """Answer, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="a chat model")
    parser.add_argument("--rules", nargs="+", choices=PROMPTS, default=[*PROMPTS])
    parser.add_argument("--prompts", type=int, default=40, help="questions")
    parser.add_argument("--new_tokens", type=int, help="longest reply; default: that of the other guides' page")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    args = parsed(parser, SMALL)
    figures = {}
    for rule in args.rules:
        world = Questions(
            folder=args.output_dir / rule, replies=args.output_dir, data=args.data, backbone=args.backbone, about=rule
        )
        world = world.shortened(args.new_tokens)
        figures[rule] = measured(world, world.asked("test", args.prompts), args.output_dir / rule, args.seed)
        print(f"{rule}: done.", flush=True)
    about = circumstances() | {"prompts": args.prompts, "seed": args.seed, "texts": PROMPTS}
    publish(
        args.output_dir, {"about": about, "at": figures}, {"real-prompts": table(figures)}, args.page,
        name="real-prompts",
    )  # fmt: skip


if __name__ == "__main__":
    main()
