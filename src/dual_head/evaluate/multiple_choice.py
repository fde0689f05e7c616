"""Multiple choice for many systems: log-probabilities in, MC1 and MC2 with paired differences out, as a report.

Scores are stored by system and question, so that a second run loads no model. What the scores mean is the benchmark's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from dual_head.backbone.fingerprint import digest
from dual_head.console.gauge import gauged
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark, ChoiceQuestion, ChoiceScores
from dual_head.evaluate.compare.win_rates import paired_difference
from dual_head.evaluate.metrics.likelihood import continuation_logps
from dual_head.evaluate.metrics.measures import stored
from dual_head.evaluate.options import EvaluationOptions
from dual_head.evaluate.questions import load_questions
from dual_head.evaluate.report.page import write
from dual_head.evaluate.report.tables import about_questions, about_systems, heading
from dual_head.evaluate.systems import open_system, parse_systems
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.types import Question

CHUNK = 64  # choices scored between two looks at the bar
METRICS = [
    {"name": "MC1", "unit": "", "better": "higher", "about": "share of questions whose best answer is the likeliest"},
    {"name": "MC2", "unit": "", "better": "higher", "about": "probability of the true answers among all of a question"},
]


def evaluate_choices(
    benchmark: ChoiceBenchmark, options: EvaluationOptions, output: Path, console: Console, *, command: str = ""
) -> dict[str, Any]:
    """Score every system's choices, write the report into `output` and return it. Errors: a system without a model."""
    questions, row_report = load_questions(
        benchmark.name, options.source, num_samples=options.num_samples, seed=options.seed
    )
    console.print(row_report.table(), soft_wrap=True)
    systems = []
    for spec in parse_systems(options.models):
        system = open_system(spec, **options.load)
        if not isinstance(system, ModelSystem):
            raise DualHeadError(
                f"'{system.name}' is not a model of this machine, and {benchmark.title} asks how likely a model finds "
                "each answer. Leave it out."
            )
        systems.append(system)
    scores: dict[str, ChoiceScores] = {}
    for system in systems:
        scores[system.name] = _scores(benchmark, system, questions, output / "scores", console, options.batch_size)
        system.release()
    report = {
        "title": f"{benchmark.title}: {', '.join(scores)}",
        **heading(command, None),
        "benchmark": about_questions(benchmark.name, options.source, questions, row_report),
        "systems": about_systems(systems),
        "quality": {
            "metrics": METRICS,
            "rows": [{"system": n, "values": {"MC1": score.mc1, "MC2": score.mc2}} for n, score in scores.items()],
        },
        "tables": [_differences(scores), *_by_category(scores)],
    }
    write(output, report)
    return report


def _scores(
    benchmark: ChoiceBenchmark,
    system: ModelSystem,
    questions: Sequence[Question],
    folder: Path,
    console: Console,
    batch_size: int,
) -> ChoiceScores:
    def computed(pairs: Sequence[Any]) -> list[float]:
        values = []
        for start in gauged(range(0, len(pairs), CHUNK), f"{system.name}: choices", quiet=console.quiet):
            chunk, alpha = pairs[start : start + CHUNK], dict(system.alpha) or None
            rows = continuation_logps(system.model, system.tokenizer, chunk, alpha=alpha, batch_size=batch_size)
            values += [row.logp for row in rows]
        return values

    def logps(pairs: Sequence[Any]) -> list[float]:
        return stored(
            folder / f"{system.name}.json",
            digest([system.identity, list(pairs)]),
            compute=lambda: {"logps": computed(pairs)},
            read=lambda row: [float(value) for value in row["logps"]],
        )

    return benchmark.score(logps, cast(Sequence[ChoiceQuestion], questions))


def _differences(scores: dict[str, ChoiceScores]) -> dict[str, Any]:
    """Every system's MC1 and MC2 less the first one's, over the same questions."""
    first, *others = scores
    columns = {
        name: [{str(i): score[column] for i, score in enumerate(row.questions)} for column in (0, 1)]  # MC1, MC2
        for name, row in scores.items()
    }
    rows = []
    for name in others:
        pairs = zip(columns[name], columns[first], strict=True)
        rows.append([name, *(paired_difference(*pair).text(".3f") for pair in pairs)])
    about = "paired over questions; it holds zero where the two cannot be told apart"
    return {"title": f"Differences from {first}", "about": about, "columns": ["system", "MC1", "MC2"], "rows": rows}


def _by_category(scores: dict[str, ChoiceScores]) -> list[dict[str, Any]]:
    categories = next(iter(scores.values())).categories
    if len(categories) < 2:
        return []
    rows = []
    for name, means in categories.items():
        values = [system.categories[name]["mc2"] for system in scores.values()]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        rows.append([f"{name} ({means['n']})", *cells])
    return [
        {"title": "MC2 by category", "about": "questions in brackets", "columns": ["category", *scores], "rows": rows}
    ]
