"""The figures of an evidence folder, from its files of answers and of runs: plain values for tables and for JSON.

It knows which rows belong to which figure; `evidence_figures` knows the arithmetic.
"""

import json
from collections.abc import Mapping
from typing import Any

from evidence_answers import Row
from evidence_figures import compared, crossed, frontiers, preferred, strengths_of, table_of, traded, worded
from evidence_judge import judge_folder
from evidence_runs import ABLATIONS, train
from evidence_stages import Evidence
from evidence_transfer import transfer_alphas

from dual_head.errors import DualHeadError

DECLINING = ("harmless", "safer")  # objectives whose replies may decline or ask back


def summary(evidence: Evidence, about: dict[str, Any]) -> dict[str, Any]:
    """All figures, from the files of answers. Errors: one that is not there."""
    if missing := evidence.missing():
        raise DualHeadError(f"{len(missing)} files are not there, such as '{missing[0]}'. Run --stage all to the end.")
    plan, rates = evidence.plan, evidence.rates()
    base = [evidence.base(seed) for seed in range(plan.seeds)]
    runs = {name: [run for run in plan.main(rates) if run.method == name] for name in plan.methods}
    rows = {name: [evidence.test(run) for run in seeds] for name, seeds in runs.items()}
    labels = dict.fromkeys(run.label for run in plan.ablated(rates))
    ablated = {x: [evidence.test(run) for run in plan.ablated(rates) if run.label == x] for x in labels}
    reports = {name: train(plan, seeds[0]) for name, seeds in runs.items()}
    main = {
        name: {key: reports[name][key] for key in ("parameters", "forwards", "seconds", "options", "learning_rate")}
        | {"at": compared(answers, base, strengths_of(answers))}
        for name, answers in rows.items()
    }
    first = plan.methods[0]
    wins = {"the backbone": preferred(rows[first], base, ("1", "0"))} | {
        name: preferred(rows[first], answers, ("1", "1")) for name, answers in rows.items() if name != first
    }
    return {
        "about": about,
        "judge": _judge(evidence),
        "search": {name: {"tried": tried, "rate": rates[name]} for name, tried in evidence.tried().items()},
        "main": main,
        "trade_off": traded(rows, base, [evidence.base(seed) for seed in plan.base_seeds]),
        "wins": {"of": first, "over": wins},
        "quality": {
            "the backbone": compared(base, base, ["0"])["0"],
            **{n: figures["at"]["1"] for n, figures in main.items()},
        },
        "words": worded({"the backbone": base, **rows, **ablated}) if plan.world.about in DECLINING else {},
        "two": frontiers(
            {name: [evidence.two(name, seed) for seed in range(plan.seeds)] for name in evidence.mixed()},
            plan.world.mixed,
        ),
        "ablation": _ablation(ablated, base, rows),
        "transfer": _transfer(evidence, rates),
        "costs": json.loads(costs.read_text()) if (costs := evidence.folder / "costs.json").is_file() else {},
    }


def _judge(evidence: Evidence) -> dict[str, Any]:
    objectives = ("overall", *evidence.plan.world.mixed)
    files = {name: judge_folder(evidence.folder, name) / "judge.json" for name in objectives}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def _ablation(
    ablated: Mapping[str, list[list[Row]]], base: list[list[Row]], rows: Mapping[str, list[list[Row]]]
) -> dict[str, Any]:
    """Each setting of one change, and the method's own settings, at the same seeds."""
    methods, figures = {label: ABLATIONS[label][0] for label in ablated}, {}
    at_equal = traded({name: rows[name] for name in dict.fromkeys(methods.values())}, base)["methods"]
    for name, points in at_equal.items():
        at = compared(rows[name], base, ["1"])
        figures[f"{name} itself"] = {"method": name, "at": at, "trade_off": points, "change": None}
    for label, answers in ablated.items():
        name = methods[label]
        mean, interval = crossed(table_of(answers, "1", "overall") - table_of(rows[name], "1", "overall"))
        at, points = compared(answers, base, ["1"]), traded({label: answers}, base)["methods"][label]
        change = {"mean": mean, "interval": interval}
        figures[label] = {"method": name, "at": at, "trade_off": points, "change": change}
    return figures


def _transfer(evidence: Evidence, rates: dict[str, float]) -> dict[str, Any]:
    if not evidence.siblings:
        return {}
    plan, figures = evidence.plan, {}
    alphas = [f"{alpha:g}" for alpha in transfer_alphas(plan)]
    for name in evidence.siblings.systems(plan, rates, 0):
        answers = [evidence.transfer(name, seed) for seed in range(plan.seeds)]
        figures[name] = {"at": compared(answers, answers, alphas)}
    return figures
