"""Multiple choice for many systems: log-probabilities in, MC1 and MC2 with paired differences out, as a report.

Scores are kept by system and question, so that a second run loads no model. It knows systems and files; what the
scores mean is the benchmark's.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dual_head.backbone.fingerprint import digest
from dual_head.console.gauge import gauged
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark, ChoiceQuestion, ChoiceScores
from dual_head.evaluate.compare.win_rates import paired_difference
from dual_head.evaluate.metrics.likelihood import continuation_logps
from dual_head.evaluate.report.page import write
from dual_head.evaluate.report.tables import about_systems, heading
from dual_head.evaluate.systems import open_system
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.specs import parse_systems
from dual_head.files.places import atomic_folder, settle
from dual_head.files.reading import read_json
from dual_head.options import fit

CHUNK = 64  # choices scored between two looks at the bar
METRICS = [
    {"name": "MC1", "unit": "", "better": "higher", "about": "share of questions whose best answer is the likeliest"},
    {"name": "MC2", "unit": "", "better": "higher", "about": "probability of the true answers among all of a question"},
]


def evaluate_choices(
    benchmark: ChoiceBenchmark,
    models: Sequence[str],
    source: str | None,
    output: Path,
    console: Console,
    *,
    command: str = "",
    num_samples: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    load: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score every system's choices, write the report into `output` and return it.

    source: as the benchmark reads it. Errors: none given where it needs one, a system that is no model.
    """
    questions = benchmark.load(source)
    if num_samples is not None and num_samples < len(questions):
        places = random.Random(f"{benchmark.name}:{seed}").sample(range(len(questions)), num_samples)
        questions = [questions[i] for i in sorted(places)]
    scores: dict[str, ChoiceScores] = {}
    systems = [open_system(spec, **(load or {})) for spec in parse_systems(models)]
    for system in systems:
        if not isinstance(system, ModelSystem):
            raise DualHeadError(
                f"'{system.name}' is a file of answers; {benchmark.title} asks how likely a model finds some."
            )
    for system in systems:
        assert isinstance(system, ModelSystem)
        scores[system.name] = _scores(benchmark, system, questions, output / "scores", console, batch_size)
        system.release()
    report = {
        **heading(f"{benchmark.title}: {', '.join(scores)}", command, None),
        "benchmark": {"name": benchmark.name, "questions": len(questions), "source": source, "dropped": {}},
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
    questions: Sequence[ChoiceQuestion],
    folder: Path,
    console: Console,
    batch_size: int,
) -> ChoiceScores:
    def logps(pairs: Sequence[Any]) -> list[float]:
        file = folder / f"{system.name}.json"
        key = digest([system.identity, list(pairs)])
        settle(folder)
        try:
            kept = read_json(file, "")
            if kept.get("key") == key:
                return fit(kept.get("logps"), list[float], "logps")
        except DualHeadError:  # it is computed again
            pass
        values: list[float] = []
        for start in gauged(range(0, len(pairs), CHUNK), f"{system.name}: choices", quiet=console.quiet):
            scored = continuation_logps(
                system.model,
                system.tokenizer,
                pairs[start : start + CHUNK],
                alpha=dict(system.alpha) or None,
                batch_size=batch_size,
            )
            values += [one.logp for one in scored]
        with atomic_folder(folder) as staging:
            (staging / file.name).write_text(json.dumps({"key": key, "logps": values}))
        return values

    return benchmark.score(logps, questions)


def _differences(scores: dict[str, ChoiceScores]) -> dict[str, Any]:
    """Every system's MC1 and MC2 less the first one's, over the same questions."""
    first, *others = scores
    rows = []
    for name in others:
        cells = []
        for which in (0, 1):
            values, base = (_known(scores[system], which) for system in (name, first))
            shared = values.keys() & base.keys()
            difference = paired_difference({i: values[i] for i in shared}, {i: base[i] for i in shared})
            low, high = difference.interval
            cells.append(f"{difference.mean:+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append([name, *cells])
    about = "paired over questions; it holds zero where the two cannot be told apart"
    return {"title": f"Differences from {first}", "about": about, "columns": ["system", "MC1", "MC2"], "rows": rows}


def _known(scores: ChoiceScores, which: int) -> dict[str, float]:
    """MC1 (0) or MC2 (1) by question, where there is one."""
    values = ((str(i), score[which]) for i, score in enumerate(scores.questions))
    return {i: value for i, value in values if value is not None}


def _by_category(scores: dict[str, ChoiceScores]) -> list[dict[str, Any]]:
    categories = next(iter(scores.values())).categories
    if len(categories) < 2:
        return []
    rows = [
        [f"{name} ({means['n']})", *(_cell(system.categories[name]["mc2"]) for system in scores.values())]
        for name, means in categories.items()
    ]
    return [
        {"title": "MC2 by category", "about": "questions in brackets", "columns": ["category", *scores], "rows": rows}
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
