"""What a guide gains for the minutes that its making took: sampling, hidden states and training, for sets of pairs.

    python experiments/real_budget.py --evidence real --replies real/replies --data DATA --backbone smollm2 \\
        --pairs 20 60 200 --page docs/results/real_model.md

Runs beside nothing else: its figures are times. What is done is skipped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from evidence_answers import answered, base_of
from evidence_figures import compared
from evidence_runs import Plan, Run, train
from evidence_script import circumstances, parsed, publish
from evidence_tables import markdown
from real_replies import COUNT, read
from real_world import Questions

from dual_head import AlignedModel
from dual_head.errors import DualHeadError
from dual_head.replies import RULES

METHOD, EPOCHS = "hidden", 2
SMALL = {"pairs": [2, 3], "prompts": 4}


def measured(args: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """Train on the first pairs and answer; seconds of each part."""
    world = Questions(
        folder=args.evidence / f"budget-{args.rule}-{pairs}", replies=args.replies, data=args.data,
        backbone=str(Path(args.backbone).resolve()), about=args.rule, most=pairs,
    )  # fmt: skip
    steps = max(1, EPOCHS * pairs // world.batch)
    plan = Plan(world=world, folder=world.folder, steps=steps, methods=(METHOD,))
    run = Run(method=METHOD, rate=args.rate, seed=0)
    trained = train(plan, run)  # with the hidden states, which are kept for these pairs alone
    asked = world.asked("test", args.prompts)
    base = answered(world.folder / "base.jsonl", world, asked, (0.0,), seed=0, model=lambda: base_of(world))
    rows = answered(
        plan.place(run) / "test.jsonl", world, asked, (1.0,), seed=0,
        model=lambda: AlignedModel.from_pretrained(str(plan.place(run))),
    )  # fmt: skip
    return {"pairs": pairs, "steps": steps, "seconds": trained["seconds"], **compared([rows], [base], ["1"])["1"]}


def sampling(replies: Path, rule: str) -> tuple[float, float]:
    """Seconds that a pair of a rule took to sample, and prompts."""
    rows = list(read(replies / "replies.jsonl"))
    about = json.loads((replies / "pairs.json").read_text())[rule]
    if not about["pairs"] or not all("seconds" in row for row in rows):
        raise DualHeadError(f"'{replies}' has no pairs of '{rule}', or no times. Sample it again with real_replies.py.")
    return sum(row["seconds"] for row in rows) / about["pairs"], about["prompts"] / about["pairs"]


def table(figures: list[dict[str, Any]], unit: str) -> str:
    """A row to a budget."""
    rows = [
        [
            f"{(one['sampling'] + one['seconds']) / 60:.0f}", f"{one['prompts']:.0f} x {COUNT}", str(one["pairs"]),
            str(one["steps"]), f"{one['sampling'] / 60:.1f}", f"{one['seconds'] / 60:.1f}",
            f"{one['gain']:+.2f} ({one['interval'][0]:+.2f} to {one['interval'][1]:+.2f})", f"{one['kl']:.1f}",
        ]
        for one in figures
    ]  # fmt: skip
    columns = ["minutes", "prompts x replies", "pairs", "steps", "of them sampling", "hidden states and training"]
    return markdown([*columns, f"gain at alpha = 1, {unit} (95%)", "KL"], rows)


def main() -> None:
    """Measure each budget and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--replies", type=Path, required=True, help="folder that real_replies.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="the chat model of the replies")
    parser.add_argument("--rule", choices=tuple(RULES), default="positive")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--pairs", type=int, nargs="+", default=[20, 60, 200])
    parser.add_argument("--prompts", type=int, default=150, help="test questions")
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    args = parsed(parser, SMALL)
    a_pair, prompts = sampling(args.replies, args.rule)
    figures = [
        {**measured(args, pairs), "sampling": a_pair * pairs, "prompts": prompts * pairs} for pairs in args.pairs
    ]
    about = circumstances() | {"rule": args.rule, "rate": args.rate, "questions": args.prompts}
    blocks = {"real-budget": table(figures, RULES[args.rule].unit)}
    publish(args.evidence / "budget", {"about": about, "budgets": figures}, blocks, args.page, name="real-budget")


if __name__ == "__main__":
    main()
