"""What single labelled replies teach beside pairs of the same replies: KTO and the paired method, in the small world.

    python experiments/feedback.py --output_dir feedback --page docs/results/methods.md

`hidden` trains on N pairs of the behaviour policy's replies. `kto` trains on the same 2 N replies by themselves: scored
by the exact reward and desirable from a threshold on, or labelled by the side of their pair. All answer the same new
requests. What is done is skipped.
"""

import json
from pathlib import Path
from typing import Any

from evidence_answers import answered, base_of
from evidence_figures import compared, differences, traded
from evidence_script import circumstances, parsed, publish, same_arguments, world_parser
from evidence_tables import markdown, trade_off_table
from evidence_worlds import Demo

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.demo import TOY_BACKBONE, world
from dual_head.train.run import RunOptions, train_guide

ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0)
PAIRED, SCORED, SIDES = "hidden, pairs", "kto, scores", "kto, sides of pairs"
SMALL = {"pairs": 24, "seeds": 1, "prompts": 4, "new_tokens": 8, "epochs": 1.0}


def written(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    """Files of pairs, and of their replies one by one with the exact reward."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = world.preference_rows(count, seed=seed)
    replies = [
        {"prompt": row["prompt"], "completion": row[side],
         "score": world.reward(world.parse_request(row["prompt"]), row[side]).total}
        for row in pairs for side in ("chosen", "rejected")
    ]  # fmt: skip
    files = folder / f"pairs-s{seed}.jsonl", folder / f"replies-s{seed}.jsonl"
    for file, rows in zip(files, (pairs, replies), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def guide(folder: Path, name: str, options: dict[str, Any], data: Path, args: Any, seed: int, **run: Any) -> Path:
    """The folder of a trained guide: as many replies a step, pairs of them or single ones."""
    if (folder / "report.json").is_file():
        return folder
    replies = args.replies_a_step // (1 if name == "kto" else 2)
    train_guide(
        method(name).with_options(options),
        RunOptions(model_name_or_path=str(TOY_BACKBONE), dataset_name=str(data), held_out=0.0, **run),
        GuideTrainingArguments(
            output_dir=str(folder), learning_rate=args.learning_rate, num_train_epochs=args.epochs,
            per_device_train_batch_size=replies, lr_scheduler_type="cosine", train_sampling_strategy="random",
            save_strategy="no", eval_strategy="no", disable_tqdm=True, seed=seed,
        ),
    )  # fmt: skip
    return folder


def main() -> None:
    """Train all three, answer, and write the tables."""
    parser = world_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=2000, help="N")
    parser.add_argument("--threshold", type=float, default=0.5, help="a reply is desirable from so many points on")
    parser.add_argument("--replies_a_step", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parsed(parser, SMALL)
    same_arguments(args)
    demo = Demo(folder=args.output_dir)
    requests = demo.asked("test", args.prompts)
    rows: dict[str, list] = {PAIRED: [], SCORED: [], SIDES: []}
    base = []
    options = {"beta": args.beta, "lambda_kl": 0.0}
    for seed in range(args.seeds):
        pairs, replies = written(args.output_dir / "data", args.pairs, seed)
        plans = {PAIRED: ("hidden", pairs, {}), SCORED: ("kto", replies, {"label_threshold": args.threshold}),
                 SIDES: ("kto", pairs, {})}  # fmt: skip
        for name, (trained, data, run) in plans.items():
            place = args.output_dir / f"{name.replace(', ', '-').replace(' ', '-')}-s{seed}"
            guide(place, trained, options, data, args, seed, **run)
            rows[name].append(
                answered(place / "test.jsonl", demo, requests, ALPHAS, seed=seed, max_new_tokens=args.new_tokens,
                         model=lambda place=place: AlignedModel.from_pretrained(str(place)))
            )  # fmt: skip
            print(f"{name}, seed {seed}: answered", flush=True)
        base.append(
            answered(args.output_dir / f"base-{seed}.jsonl", demo, requests, (0.0,), seed=seed,
                     max_new_tokens=args.new_tokens, model=lambda: base_of(demo))
        )  # fmt: skip
    alphas = [f"{alpha:g}" for alpha in ALPHAS]
    figures = {name: compared(answers, base, alphas) for name, answers in rows.items()}
    at_equal = traded(rows, base)
    lines = []
    for name, at in figures.items():
        one, (low, high) = at["1"], at["1"]["interval"]
        gains = (f"{at[a]['gain']:+.2f} ({at[a]['kl']:.2f})" for a in alphas)
        lines.append([name, f"{one['gain']:+.2f} ({low:+.2f} to {high:+.2f})", *gains])
    table = markdown(["trained", "gain at alpha 1 (95%)", *(f"at {alpha} (KL)" for alpha in alphas)], lines)
    more = {f"{name} less {PAIRED}": differences(rows[name], rows[PAIRED], base) for name in (SCORED, SIDES)}
    curves = {**at_equal, "methods": {**at_equal["methods"], **more}, "best_of": {}}
    plan = {name: getattr(args, name) for name in vars(args) if name not in ("output_dir", "page", "small")}
    publish(
        args.output_dir,
        {"about": circumstances() | plan, "at": figures, "trade_off": at_equal, "difference": more},
        {"feedback": f"{table}\n\n{trade_off_table(curves)}"},
        args.page,
        name="feedback",
    )


if __name__ == "__main__":
    main()
