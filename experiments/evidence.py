"""The evidence: every method on the same pairs with the same budget, judged on prompts that nothing was trained on.

    python experiments/evidence.py --world demo --output_dir evidence/demo --jobs 2
    python experiments/evidence.py --world hh --chat chat --strong strong --output_dir evidence/hh --jobs 2
    python experiments/evidence.py --world real --replies real --data DATA --backbone B --about plain --output_dir out
    python experiments/evidence.py --world people --data DATA --backbone B --about safer --output_dir out
    python experiments/evidence.py --world demo --output_dir evidence/demo --stage report --page docs/results/methods.md

Search of the learning rate on prompts of its own, then several seeds at the best; objectives mixed, ablations, weak
to strong (in the hh world where --strong is given). What is done is skipped, so the same command goes on after it was
stopped, and a command with more methods, seeds or ablations adds these to its folder. Several processes on one folder
share the work. Writes summary.json and tables.md, and with --page the tables between their markers there.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence_data import OBJECTIVES
from evidence_pictures import draw_trade_off
from evidence_runs import ABLATED, ABLATIONS, METHODS, Plan
from evidence_script import circumstances, parsed, publish, same_plan
from evidence_stages import Evidence
from evidence_summary import summary
from evidence_tables import tables
from evidence_transfer import Siblings
from evidence_worlds import Demo, Dialogues, World
from people_world import People
from real_world import Questions

from dual_head.errors import DualHeadError
from dual_head.replies import RULES

STEPS = {"demo": 200, "hh": 120, "real": 75, "people": 75}
WEAK_STEPS = 1200
STAGES = ("all", "judge", "train", "answer", "costs", "report")
SMALL = {"seeds": 2, "rates": 1, "steps": 2, "prompts": 6, "dev_prompts": 4, "two_prompts": 4}
SMALL_NEW_TOKENS = 8
SMALL_METHODS = ("dual_head", "hidden", "iav", "genarm", "dpo")
SMALL_ABLATIONS = ("fixed gate",)


def main() -> None:
    """Run the stages that are asked for."""
    args = _arguments()
    folder = Path(args.output_dir)
    world = _world(args, folder)
    plan = Plan(world=world, folder=folder, steps=args.steps or STEPS[world.name], seeds=args.seeds, rates=args.rates,
                prompts=args.prompts, dev_prompts=args.dev_prompts, max_new_tokens=args.max_new_tokens,
                ablations=ABLATED[world.name])  # fmt: skip
    if args.small:
        plan = replace(plan, methods=SMALL_METHODS, ablations=SMALL_ABLATIONS,
                       alphas=(0.5, 1.0), grid=(0.0, 1.0), max_new_tokens=SMALL_NEW_TOKENS)  # fmt: skip
    if args.methods:
        plan = replace(plan, methods=tuple(args.methods))
    if args.ablations is not None:
        plan = replace(plan, ablations=tuple(args.ablations))
    if args.best_of:
        plan = replace(plan, best_of=args.best_of)
    if args.grid:
        plan = replace(plan, grid=tuple(args.grid))
    if args.alphas:
        plan = replace(plan, alphas=tuple(args.alphas))
    small: dict = {"judge_steps": 2, "weak_steps": 4, "timing": {"new_tokens": 2, "rounds": 1}} if args.small else {}
    numbers = {"judge_steps": None, "weak_steps": WEAK_STEPS, **small}
    two_prompts = 0 if args.world == "people" else args.two_prompts
    evidence = Evidence(plan, _siblings(args, folder, world), two_prompts=two_prompts, **numbers)
    same_plan(folder / "plan.json", identity(plan))
    others = [subprocess.Popen([sys.executable, *_for_others()]) for _ in range(args.jobs - 1)]
    if args.stage == "judge":
        evidence.judge()
    if args.stage in ("all", "train"):
        evidence.train()
    if args.stage in ("all", "answer"):
        evidence.answer()
    if any(other.wait() for other in others):
        raise SystemExit("Another of the processes failed; see above, and run the same command again.")
    if args.stage in ("all", "costs") and not args.worker:
        evidence.measure()
    if args.stage in ("all", "report") and not args.worker:
        _report(evidence, args)


def _report(evidence: Evidence, args: argparse.Namespace) -> None:
    about = {
        "world": evidence.plan.world.title,
        "judge": evidence.plan.world.judge,
        **circumstances(),
        "steps": evidence.plan.steps,
        "seeds": evidence.plan.seeds,
        "prompts": evidence.plan.prompts,
    }
    figures = summary(evidence, about)
    title = evidence.plan.world.title
    publish(evidence.folder, figures, tables(figures), args.page, name=f"evidence-{title}")
    place = Path(args.page).parent if args.page else evidence.folder
    draw_trade_off(figures, place / f"{title.replace('-', '_')}_trade_off.png")


def identity(plan: Plan) -> dict[str, Any]:
    """What all runs of a folder have in common."""
    return {
        "world": plan.world.name,
        "about": plan.world.about,
        "backbone": plan.world.backbone,
        "pairs": plan.world.extent,
        "steps": plan.steps,
        "prompts": plan.prompts,
        "dev_prompts": plan.dev_prompts,
        "max_new_tokens": plan.max_new_tokens,
        "dtype": plan.world.dtype,
    }


def _world(args: argparse.Namespace, folder: Path) -> World:
    if args.world == "demo":
        return Demo(folder=folder, pairs_each=200 if args.small else 4000)
    if args.world == "real":
        if not (args.replies and args.data and args.backbone):
            raise DualHeadError("The world real needs --replies, --data and --backbone, as real_replies.py has them.")
        return Questions(
            folder=folder, replies=args.replies, data=args.data, backbone=str(Path(args.backbone).resolve()),
            about="concise" if args.about == "overall" else args.about, most=16 if args.small else None,
            dtype=args.dtype, bf16=args.dtype == "bfloat16", mixed=tuple(dict.fromkeys(args.mixed)),
        )  # fmt: skip
    if args.world == "people":
        if not (args.data and args.backbone):
            raise DualHeadError("The world people needs --data and --backbone.")
        about = "safer" if args.about == "overall" else args.about
        if about not in OBJECTIVES:
            raise DualHeadError(f"The world people knows the objectives {', '.join(OBJECTIVES)}. '{about}' is a rule.")
        return People(
            folder=folder, data=args.data, backbone=str(Path(args.backbone).resolve()), about=about, mixed=(about,),
            pairs_each=args.pairs, most=16 if args.small else None, dtype=args.dtype, bf16=args.dtype == "bfloat16",
        )  # fmt: skip
    if not args.chat:
        raise DualHeadError("Say with --chat where experiments/chat_backbone.py wrote its backbone.")
    backbone = str(Path(args.chat).resolve())
    return Dialogues(folder=folder, backbone=backbone, about=args.about, most=64 if args.small else None)


def _siblings(args: argparse.Namespace, folder: Path, world: World) -> Siblings | None:
    if isinstance(world, Demo):
        return Siblings(weak=str((folder / "weak").resolve()), strong=world.backbone)
    return Siblings(weak=world.backbone, strong=str(Path(args.strong).resolve())) if args.strong else None


def _for_others() -> list[str]:
    """This command for one more process on the same folder."""
    return [*sys.argv, "--jobs", "1", "--worker"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, choices=tuple(STEPS))
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--stage", choices=STAGES, default="all")
    parser.add_argument("--chat", help="backbone of the hh world, as chat_backbone.py writes it")
    parser.add_argument("--strong", help="a larger sibling of --chat, for weak to strong in the hh world")
    parser.add_argument("--replies", type=Path, help="folder of the real world's replies, as real_replies.py writes it")
    parser.add_argument("--data", type=Path, help="folder that holds the questions of the worlds real and people")
    parser.add_argument("--backbone", help="the chat model of the worlds real and people")
    parser.add_argument("--dtype", default="auto", help="of that model; bfloat16: trained in it too")
    parser.add_argument("--about", choices=("overall", *OBJECTIVES, *RULES), default="overall",
                        help="objective of people, or rule of the real world, to compare by")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=400, help="that guides of the world people are trained on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="some methods, not all")
    parser.add_argument("--ablations", nargs="*", choices=tuple(ABLATIONS), help="some ablations, or none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=int, choices=(1, 2, 3), default=3, help="learning rates tried of each method")
    parser.add_argument("--steps", type=int, help="of every run")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--dev_prompts", type=int, default=100, help="of the search")
    parser.add_argument("--two_prompts", type=int, default=100,
                        help="at every set of strengths; 0: no mixing, as in the world people")  # fmt: skip
    parser.add_argument("--mixed", nargs="+", choices=tuple(RULES), default=["concise", "positive"],
                        help="rules of the real world whose guides are mixed [%(default)s]")  # fmt: skip
    parser.add_argument("--grid", type=float, nargs="+", help="strengths of each guide in a mix [0 0.5 1 1.5]")
    parser.add_argument("--max_new_tokens", type=int, help="instead of the world's own")
    parser.add_argument("--alphas", type=float, nargs="+", help="strengths of every method, 1 among them [by method]")
    parser.add_argument("--best_of", type=int, help="the backbone's replies to choose the best of [as many as seeds]")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--page", help="a markdown file whose tables between markers are written again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parsed(parser, SMALL)


if __name__ == "__main__":
    main()
