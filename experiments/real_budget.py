"""What a guide gains for the minutes that its making took: sampling, hidden states and training, for sets of pairs.

    python experiments/real_budget.py --evidence real --replies real/replies --data DATA --backbone smollm2 \\
        --pairs 60 200 --page docs/results/real_model.md

Sampling and training run beside nothing else: their figures are times. Every budget is trained before any answers,
which are not timed. What is done is skipped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from evidence_answers import answered, base_of
from evidence_figures import at_divergence, compared, traded
from evidence_runs import Plan, Run, train
from evidence_script import circumstances, parsed, publish
from evidence_tables import gain_text, markdown
from real_replies import COUNT, kind_of, read
from real_world import Questions

from dual_head import AlignedModel
from dual_head.errors import DualHeadError
from dual_head.replies import RULES

METHOD, EPOCHS = "hidden", 2
ALPHAS = (0.5, 1.0, 2.0)
NATS = 2.0  # a reply, at which the budgets are compared
SMALL = {"pairs": [2, 3], "prompts": 4}


def plan_of(args: argparse.Namespace, pairs: int) -> Plan:
    """Training on the first so many pairs."""
    world = Questions(
        folder=args.evidence / f"budget-{args.rule}-{pairs}", replies=args.replies, data=args.data,
        backbone=str(Path(args.backbone).resolve()), about=args.rule, most=pairs,
        dtype=args.dtype, bf16=args.dtype == "bfloat16",
    )  # fmt: skip
    return Plan(world=world, folder=world.folder, steps=max(1, EPOCHS * pairs // world.batch), methods=(METHOD,))


def measured(plan: Plan, run: Run, prompts: int) -> dict[str, Any]:
    """Gains of a trained guide over the backbone, at alpha = 1 and at one divergence."""
    world, questions = plan.world, plan.world.asked("test", prompts)
    base = answered(world.shared / "budget.jsonl", world, questions, (0.0,), seed=0, model=lambda: base_of(world))
    rows = answered(
        plan.place(run) / "test.jsonl", world, questions, ALPHAS, seed=0,
        model=lambda: AlignedModel.from_pretrained(str(plan.place(run)), dtype=world.dtype),
    )  # fmt: skip
    points = traded({METHOD: [rows]}, [base])["methods"][METHOD]
    return {
        **compared([rows], [base], ["1"])["1"],
        "traded": at_divergence(points, NATS),
    }


def sampling(replies: Path, rule: str) -> tuple[float, float]:
    """Seconds that a pair of a rule took to sample, and prompts."""
    rows = [row for row in read(replies / "replies.jsonl") if row["kind"] == kind_of(rule)]
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
            gain_text(one["traded"]),
        ]
        for one in figures
    ]  # fmt: skip
    columns = ["minutes", "prompts x replies", "pairs", "steps", "of them sampling", "hidden states and training"]
    return markdown([*columns, f"gain at alpha = 1, {unit} (95%)", "KL", f"gain at {NATS:.0f} nats (95%)"], rows)


def main() -> None:
    """Measure each budget and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--replies", type=Path, required=True, help="folder that real_replies.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="the chat model of the replies")
    parser.add_argument("--rule", choices=tuple(RULES), default="concise")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--pairs", type=int, nargs="+", required=True, help="of each budget")
    parser.add_argument("--prompts", type=int, default=300, help="test questions")
    parser.add_argument("--dtype", default="auto", help="of that model; bfloat16: trained in it too")
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    args = parsed(parser, SMALL)
    a_pair, prompts = sampling(args.replies, args.rule)
    plans, run = {pairs: plan_of(args, pairs) for pairs in args.pairs}, Run(method=METHOD, rate=args.rate, seed=0)
    seconds = {pairs: train(plan, run)["seconds"] for pairs, plan in plans.items()}  # with caching the hidden states
    figures = [
        {
            "pairs": pairs, "steps": plan.steps, "prompts": prompts * pairs, "sampling": a_pair * pairs,
            "seconds": seconds[pairs], **measured(plan, run, args.prompts),
        }
        for pairs, plan in plans.items()
    ]  # fmt: skip
    about = circumstances() | {"rule": args.rule, "rate": args.rate, "dtype": args.dtype, "questions": args.prompts}
    blocks = {"real-budget": table(figures, RULES[args.rule].unit)}
    publish(args.evidence / "budget", {"about": about, "budgets": figures}, blocks, args.page, name="real-budget")


if __name__ == "__main__":
    main()
