"""The report of an evaluation as plain values, in the form that `page` lays out."""

import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import torch
import transformers

from dual_head import __version__
from dual_head.data import RowReport
from dual_head.evaluate.benchmarks import Benchmark
from dual_head.evaluate.compare.frontier import hypervolume_interval, pareto
from dual_head.evaluate.compare.win_rates import one_sided, paired_difference, win_rate
from dual_head.evaluate.judges.verdicts import Graded, Outcome, spent
from dual_head.evaluate.metrics import Measured
from dual_head.evaluate.metrics.measures import NO_QUESTION, about
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.types import Answer, Judge, Question
from dual_head.model.generate import Prompt
from dual_head.stats import summary

Answers = Mapping[str, Mapping[str, Answer]]
Values = Mapping[str, float | None]  # of each question
Verdicts = Mapping[tuple[str, str], Sequence[Outcome]]
JUDGED = {"name": "judge", "unit": "", "better": "higher", "about": "the judge's own grade of each answer"}
REWARD = "reward:"  # begins the name of a measure that is one reward
TURNED = 0.3  # share of verdicts that change with the order, above which a judge is pointed at


def judged(
    judge: Judge | None,
    questions: Sequence[Question],
    answers: Answers,
    verdicts: Verdicts,
    grades: Mapping[str, Sequence[Graded]],
) -> dict[str, Any]:
    """Win rates of every pair that has any verdict, with what the judge used, for grades too."""
    if judge is None:
        return {}
    costs = spent(chain(*verdicts.values(), *grades.values()))
    rows = []
    for (a, b), outcomes in verdicts.items():
        if all(outcome.result == "unparsable" for outcome in outcomes):
            continue  # said among the warnings
        lengths = [(sum(answers[a][q.id].lengths), sum(answers[b][q.id].lengths)) for q in questions]
        rate = asdict(win_rate(outcomes, lengths=lengths))
        rows.append({"a": a, "b": b, **rate, "interval": list(rate["interval"])})
    orders = "one order is enough for a score" if judge.symmetric else "both orders, a win only where both agree"
    return {"judge": {"name": judge.name, "used": costs, "note": orders}, "pairs": rows}


def heading(command: str, device: str | None) -> dict[str, Any]:
    """What ran, when and on what."""
    machine = [platform.machine(), device, f"{torch.get_num_threads()} threads"]
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": ", ".join(filter(None, machine)),
        "versions": {"dual_head": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def about_systems(systems: Sequence[System]) -> list[dict[str, Any]]:
    """What was compared."""
    return [{"name": s.name, "path": s.path, "alpha": dict(s.alpha), "identity": s.identity[:16]} for s in systems]


def about_questions(name: str, source: str | None, questions: Sequence[Question], report: RowReport) -> dict[str, Any]:
    """What was asked, and what was left out."""
    return {
        "name": name,
        "questions": len(questions),
        "source": source or "as published",
        "dropped": dict(report.reasons),
    }


def quality(
    systems: Sequence[System],
    questions: Sequence[Question],
    measured: Mapping[str, Measured],
    grades: Mapping[str, Sequence[Graded]],
) -> dict[str, Any]:
    """Mean and interval of every measure of every system, and differences from the first system, in pairs.

    A measure is over the questions that every system which has it has a value for, and no others.
    """
    names, values = [system.name for system in systems], _values(systems, questions, measured, grades)
    by_metric: dict[str, dict[str, Values]] = {}
    for metric in dict.fromkeys(metric for metrics in values.values() for metric in metrics):
        columns = {name: metrics[metric] for name, metrics in values.items() if _present(metrics.get(metric, {}))}
        if shared := set.intersection(*map(_present, columns.values())) if columns else set():
            by_metric[metric] = {
                name: {id: value if id in shared else None for id, value in column.items()}
                for name, column in columns.items()
            }
    if not by_metric:
        return {}
    rows = [
        {"system": n, "values": {m: summary(rows[n].values()) for m, rows in by_metric.items() if n in rows}}
        for n in names
    ]
    metrics = [JUDGED if metric == JUDGED["name"] else about(metric) for metric in by_metric]
    return {"metrics": metrics, "rows": rows, **_differences(names, by_metric)}


def _values(
    systems: Sequence[System],
    questions: Sequence[Question],
    measured: Mapping[str, Measured],
    grades: Mapping[str, Sequence[Graded]],
) -> dict[str, dict[str, Values]]:
    """Values of each system: {system: {metric: {question: value}}}, None where one is missing."""
    ids, values = {question.id for question in questions}, {}
    for system in systems:
        metrics: dict[str, Values] = {}
        if graded := grades.get(system.name):
            metrics[JUDGED["name"]] = {g.question: g.grade for g in graded}
        if system.name in measured:
            metrics |= measured[system.name].values
        values[system.name] = {
            metric: {id: value for id, value in by_question.items() if id in ids}
            for metric, by_question in metrics.items()
        }
    return values


def _present(values: Values) -> set[str]:
    return {id for id, value in values.items() if value is not None}


def _differences(names: Sequence[str], by_metric: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """How far every other system is from the first, question by question, as a table."""
    first, *others = names
    metrics = [metric for metric, rows in by_metric.items() if first in rows and len(rows) > 1]
    if not metrics:
        return {}

    def cell(name: str, metric: str) -> str:
        columns = by_metric[metric]
        return paired_difference(columns[name], columns[first]).text(".3g") if name in columns else ""

    return {
        "differences": {
            "title": f"Differences from {first}",
            "about": "mean over the same questions, in pairs, with its 95% interval",
            "columns": ["system", *metrics],
            "rows": [[name, *(cell(name, metric) for metric in metrics)] for name in others],
        }
    }


def tables(
    benchmark: Benchmark,
    systems: Sequence[System],
    questions: Sequence[Question],
    grades: Mapping[str, Sequence[Graded]],
) -> list[dict[str, Any]]:
    """Grades by turn and by category, where there are grades, and several of these."""
    names = [system.name for system in systems]
    by_id = {question.id: question.category for question in questions}
    categories = list(dict.fromkeys(filter(None, by_id.values())))
    turns = range(max((len(grade.turns) for graded in grades.values() for grade in graded), default=0))
    by_turn = {
        name: [{g.question: g.turns[n] for g in grades[name] if n < len(g.turns)} for n in turns] for name in grades
    }
    by_category = {
        name: [{g.question: g.grade for g in grades[name] if by_id[g.question] == category} for category in categories]
        for name in grades
    }
    grade_tables = []
    for part, parts, values in (
        ("turn", [f"turn {n + 1}" for n in turns], by_turn),
        ("category", categories, by_category),
    ):
        if len(parts) > 1 and values:
            grade_tables.append(
                {
                    "title": f"Grades by {part}",
                    "about": "mean grade of the judge" + ("; 1 to 10" if benchmark.graded else ""),
                    "columns": ["system", *parts],
                    "rows": [[name, *map(_mean, values[name])] for name in names],
                }
            )
    return grade_tables


def frontier(names: Sequence[str], measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Which systems no other beats in every reward, and how much they cover, where there are several of both."""
    rewards = list(dict.fromkeys(m for system in measured.values() for m in system.values if m.startswith(REWARD)))
    by_system = {name: measured[name].values for name in names if name in measured}
    by_system = {name: values for name, values in by_system.items() if values.keys() >= set(rewards)}
    if len(rewards) < 2 or len(by_system) < 2:
        return []
    shared = set.intersection(*(_present(system[metric]) for system in by_system.values() for metric in rewards))
    if not shared:
        return []
    # [systems, questions, rewards], of which a frontier is that of the means
    values = np.array(
        [[[system[m][id] for m in rewards] for id in sorted(shared)] for system in by_system.values()], dtype=float
    )
    points = values.mean(1)
    volume, best = hypervolume_interval(values, points.min(0)), pareto(points)
    low, high = volume.interval
    return [
        {
            "title": "Frontier of the rewards",
            "about": f"systems that none beats in every reward; together they cover {volume.volume:.3g} ({low:.3g} to "
            f"{high:.3g}) beyond the worst of each, over {volume.questions} questions",
            "columns": ["system", *(metric.removeprefix(REWARD) for metric in rewards), "on the frontier"],
            "rows": [
                [name, *(f"{value:+.3g}" for value in points[i]), "yes" if i in best else ""]
                for i, name in enumerate(by_system)
            ],
        }
    ]


def _mean(values: Values) -> str:
    mean = summary(values.values())["mean"]
    return "" if mean is None else f"{mean:.2f}"


def examples(questions: Sequence[Question], answers: Answers, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Every question with what each system replied and what was said of it."""
    by_question: dict[str, list[dict[str, Any]]] = {}
    for (a, b), outcomes in verdicts.items():
        for outcome in outcomes:
            words = "\n\n".join(filter(None, outcome.said)) or "; ".join(outcome.flaws)
            row = {"a": a, "b": b, "preference": outcome.preference, "said": words}
            by_question.setdefault(outcome.question, []).append(row)
    return [
        {
            "id": question.id,
            "category": question.category,
            "prompt": _shown(question.prompt, question.follow_ups),
            "replies": {name: "\n\n---\n\n".join(system[question.id].replies) for name, system in answers.items()},
            "verdicts": by_question.get(question.id, []),
        }
        for question in questions
    ]


def _shown(prompt: Prompt, follow_ups: Sequence[str]) -> str:
    turns = [prompt] if isinstance(prompt, str) else [f"{turn['role']}: {turn['content']}" for turn in prompt]
    return "\n\n".join([*turns, *(f"then: {text}" for text in follow_ups)])


def warnings(
    judge: Judge | None,
    verdicts: Verdicts,
    grades: Mapping[str, Sequence[Graded]],
    answers: Answers,
    measured: Mapping[str, Measured],
) -> list[str]:
    """What a reader of the tables should know: empty replies, unreadable verdicts, a judge that changes its mind."""
    lines = []
    for name, system in answers.items():
        if empty := sum(not any(reply.strip() for reply in answer.replies) for answer in system.values()):
            lines.append(f"{name} gave an empty answer to {empty} of {len(system)} questions; these are judged too.")
    for (a, b), outcomes in verdicts.items():
        if one_sided([(sum(answers[a][o.question].lengths), sum(answers[b][o.question].lengths)) for o in outcomes]):
            lines.append(
                f"One of {a} and {b} gives nearly all of the longer answers: what their length does to the judge "
                "cannot be told from what they say, and there is no length-controlled rate."
            )
        flaws = Counter(flaw for outcome in outcomes for flaw in outcome.flaws if flaw)
        if flaws:
            commonest = "; ".join(f"{flaw} ({count})" for flaw, count in flaws.most_common(3))
            lines.append(f"{a} against {b}: {sum(flaws.values())} verdicts could not be read: {commonest}.")
        if judge and not judge.symmetric and len(outcomes):
            share = sum(outcome.inconsistent for outcome in outcomes) / len(outcomes)
            if share > TURNED:
                lines.append(
                    f"{judge.name} changed its mind with the order in {share:.0%} of {a} against {b}: its preference "
                    "depends on the place more than is good. Such questions count as ties."
                )
    for name, graded in grades.items():
        if flaws := sum(grade.grade is None for grade in graded):
            lines.append(f"{name}: {flaws} of {len(graded)} answers have no grade.")
    systems_of: dict[str, list[str]] = {}
    for name, system in measured.items():
        for note in system.notes:
            if NO_QUESTION not in note:
                systems_of.setdefault(note, []).append(name)
    for note, names in systems_of.items():
        lines.append(note if len(names) == len(answers) else f"{', '.join(names)}: {note}")
    return lines
