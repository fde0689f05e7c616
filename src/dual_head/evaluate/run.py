"""One evaluation: questions, systems and a judge in; answers, verdicts, measures and a report out.

All that is costly is stored under what it depends on, so that a killed run goes on and a second one costs nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from dual_head.console.gauge import Gauge
from dual_head.data import RowReport
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.benchmarks import Benchmark, load_benchmark
from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark
from dual_head.evaluate.judges import load_judge
from dual_head.evaluate.judges.independence import require_independent
from dual_head.evaluate.judges.verdicts import Graded, Outcome, grade_all, judge_pairs
from dual_head.evaluate.metrics import Measured
from dual_head.evaluate.metrics.embedding import require_embedder
from dual_head.evaluate.metrics.measures import Measures
from dual_head.evaluate.multiple_choice import evaluate_choices
from dual_head.evaluate.options import EvaluationOptions
from dual_head.evaluate.questions import load_questions
from dual_head.evaluate.report import tables as reporting
from dual_head.evaluate.report.page import REPORT_FILE, write
from dual_head.evaluate.rewards import require_reward
from dual_head.evaluate.systems import System, fits, open_system, parse_systems
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.store import answer_all, require_comparable, require_same_decoding
from dual_head.evaluate.types import Answer, Decoding, Judge, Question
from dual_head.options import require_effect

ALL = "all"
USUAL_NEW_TOKENS = 128
Answers = dict[str, dict[str, Answer]]


def evaluate(options: EvaluationOptions, output: Path, console: Console, *, command: str = "") -> dict[str, Any]:
    """Run an evaluation, write answers, verdicts and the report into `output`, and return the report.

    Errors: as of its parts; a judge or reward that guided one of the systems, or cannot be had; systems that cannot
    be compared. What needs time and memory is measured when all else is written.
    """
    benchmark = load_benchmark(options.benchmark)
    if isinstance(benchmark, ChoiceBenchmark):
        options.require_of_choices()
        return evaluate_choices(benchmark, options, output, console, command=command)
    options.require_of_replies()
    systems = [open_system(spec, **options.load) for spec in parse_systems(options.models)]
    decoding = options.decoding(usual_new_tokens(systems))
    _require_readers(options, systems, decoding)
    base = _base(systems, options.base)
    pairs = pairs_of([system.name for system in systems], options.against)
    rewards = tuple(options.reward or ())
    for reward in rewards:
        require_reward(reward)
    if options.embedder:
        require_embedder(options.embedder)
    notes = require_same_decoding(systems, decoding, force=options.force)
    if not options.force:
        require_independent(systems, [options.judge or "", *rewards])
    judge = _judge(options, benchmark, notes)
    questions, row_report = _questions(options, benchmark, systems, decoding)
    console.print(row_report.table(), soft_wrap=True)
    # A score costs nothing more, so that every answer is graded by itself too.
    graded = judge is not None and (judge.symmetric or benchmark.graded)
    if judge:
        judge.require(questions, [*(["pairwise"] if pairs else []), *(["single"] if graded else [])])
    measures = Measures(
        output / "measures",
        rewards=rewards,
        embedder=options.embedder,
        base=base,
        benchmark=benchmark,
        device=options.device,
        batch_size=options.batch_size,
    )
    notes += measures.notes(systems)
    answers: Answers = {}
    measured: dict[str, Measured] = {}
    for system in systems:
        with Gauge(f"{system.name}: answers", len(questions), quiet=console.quiet) as gauge:
            answers[system.name] = answer_all(
                system,
                questions,
                decoding,
                output / "answers",
                batch_size=options.batch_size,
                on_progress=gauge.reach,
            )
            if not options.skip_measures:
                measured[system.name] = measures.of(system, questions, answers[system.name])
        if system is not measures.base:
            system.release()  # one model in memory at a time
    count = len(questions)
    questions, answers = require_comparable(questions, answers, allow_missing=options.allow_missing)
    if gaps := count - len(questions):
        notes.append(f"{gaps} of {count} questions were left out, since some system has no answer to them")
    verdicts = _verdicts(judge, questions, answers, pairs, output, options, console) if judge else {}
    grades = _grades(judge, questions, answers, output, console) if judge and graded else {}
    report = {
        "title": f"{options.benchmark}: {', '.join(answers)}",
        **reporting.heading(command, options.device or "cpu"),
        "benchmark": reporting.about_questions(options.benchmark, options.source, questions, row_report),
        "decoding": asdict(decoding),
        "systems": reporting.about_systems(systems),
        **reporting.judged(judge, questions, answers, verdicts, grades),
        "quality": reporting.quality(systems, questions, measured, grades),
        "tables": [
            *reporting.tables(benchmark, systems, questions, grades),
            *reporting.frontier([system.name for system in systems], measured),
        ],
        "examples": reporting.examples(questions, answers, verdicts),
        "warnings": [*notes, *reporting.warnings(judge, verdicts, grades, answers, measured)],
    }
    write(output, report)
    for name in answers:
        benchmark.write(output, name, questions, answers[name])
    if options.batch_sizes:
        console.print(f"time and memory, all systems in turns; all else is in {output / REPORT_FILE}", soft_wrap=True)
        report |= _efficiency(systems, questions, decoding, options.batch_sizes)
        write(output, report)
    return report


# ---- before anything is generated --------------------------------------------------------------------------


def pairs_of(names: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    """Which two are compared, (a, b) asking how often a is preferred. Errors: `against` is no system."""
    if against == ALL:
        return [(a, b) for b, a in combinations(names, 2)]
    if against is not None and against not in names:
        raise DualHeadError(f"No system is named '{against}'.{did_you_mean(against, [*names, ALL])}")
    b = against or names[0]
    return [(a, b) for a in names if a != b]


def _judge(options: EvaluationOptions, benchmark: Benchmark, notes: list[str]) -> Judge | None:
    """The judge; "rule" is the benchmark's own, which where it has none sees words alone."""
    if not options.judge:
        return None
    spec = benchmark.rule if options.judge == "rule" else options.judge
    if options.judge == "rule" and spec == Benchmark.rule:
        notes.append(
            "The rule of real text is 'diverse': the reply that repeats itself less wins. It says nothing of what "
            "replies mean. To judge that, give reward:PATH, lm:PATH, openai:MODEL, or a rule of your own as "
            "rule:module:function."
        )
    return load_judge(spec, **options.judge_options)


def usual_new_tokens(systems: Sequence[System]) -> int:
    """128, or half of the smallest context among systems, which leaves as much for the question."""
    return min([USUAL_NEW_TOKENS, *(max(1, system.context // 2) for system in systems if system.context)])


def _require_readers(options: EvaluationOptions, systems: Sequence[System], decoding: Decoding) -> None:
    """Refuse options that no system or decoding of this run reads."""
    require_effect(
        options,
        (
            ("endpoint_option",),
            any(system.remote for system in systems),
            "endpoints, and no system is one here. Add one as NAME=URL",
        ),
        (
            ("efficiency",),
            any(isinstance(system, ModelSystem) for system in systems),
            "models of this machine, and the systems are files of answers, endpoints or the best of n. Add a model",
        ),
        (
            ("efficiency",),
            decoding.max_new_tokens > 1,
            "the time between tokens, and replies have one token here. Raise --max_new_tokens",
        ),
    )


def _base(systems: Sequence[System], name: str | None) -> ModelSystem | None:
    """The system that others are measured under. Errors: none of that name, or one that is no plain model."""
    if name is None:
        return None
    names = {system.name: system for system in systems}
    if name not in names:
        raise DualHeadError(f"No system is named '{name}'.{did_you_mean(name, names)}")
    base = names[name]
    if not isinstance(base, ModelSystem) or base.guided:
        raise DualHeadError(
            f"--base is of plain models and adapters, and '{name}' is neither. Name one of those, or leave it out."
        )
    return base


def _questions(
    options: EvaluationOptions, benchmark: Benchmark, systems: Sequence[System], decoding: Decoding
) -> tuple[list[Question], RowReport]:
    count = None if benchmark.drawn else options.num_samples
    chat = True if options.chat else False if options.raw else None
    if chat is None and not benchmark.drawn and any(system.chats for system in systems):
        chat = True  # as generate reads a text; the same for all systems
    questions, report = load_questions(
        options.benchmark,
        options.source,
        num_samples=options.num_samples if benchmark.drawn else None,
        seed=options.seed,
        split=options.split,
        chat=chat,
    )
    places = list(range(len(questions)))
    if count is not None:
        random.Random(f"{options.benchmark}:{options.seed}").shuffle(places)
    fitting, misfits = fits([questions[i] for i in places], systems, decoding, count=count)
    if len(fitting) == count:
        report.notes[f"a random {count} of those that fit, seed {options.seed}"] += 1
    elif count is not None:
        report.notes[f"asked for {count} questions; {len(fitting)} fit"] += 1
    ids = {question.id for question in fitting}
    fitting = [question for question in questions if question.id in ids]
    report.kept = len(fitting)
    for reason, times in misfits.reasons.items():
        report.reasons[reason] += times
        report.first.setdefault(reason, misfits.first[reason])
    return fitting, report


# ---- judging -----------------------------------------------------------------------------------------------


def _verdicts(
    judge: Judge,
    questions: Sequence[Question],
    answers: Answers,
    pairs: Sequence[tuple[str, str]],
    output: Path,
    options: EvaluationOptions,
    console: Console,
) -> dict[tuple[str, str], list[Outcome]]:
    verdicts = {}
    for a, b in pairs:
        with Gauge(f"{judge.name}: {a} against {b}", quiet=console.quiet) as gauge:
            verdicts[a, b] = judge_pairs(
                judge,
                questions,
                answers[a],
                answers[b],
                folder=output / "verdicts",
                both_orders=not options.one_order,
                on_progress=gauge.reach,
            )
    return verdicts


def _grades(
    judge: Judge, questions: Sequence[Question], answers: Answers, output: Path, console: Console
) -> dict[str, list[Graded]]:
    grades = {}
    for name, system in answers.items():
        with Gauge(f"{judge.name}: grades {name}", quiet=console.quiet) as gauge:
            grades[name] = grade_all(judge, questions, system, folder=output / "verdicts", on_progress=gauge.reach)
    return grades


def _efficiency(
    systems: Sequence[System], questions: Sequence[Question], decoding: Decoding, sizes: Sequence[int]
) -> dict[str, Any]:
    """Time and memory at each batch size after a prompt of usual length, as tables beside each other."""
    from dual_head.evaluate.metrics.efficiency import measure_efficiency
    from dual_head.model.generate import encode_prompts

    models = [system for system in systems if isinstance(system, ModelSystem)]
    prompts = sorted((question.prompt for question in questions), key=lambda prompt: len(str(prompt)))
    usual = [prompts[len(prompts) // 2]]
    # Each system reads its own tokens and as many as the others: systems are compared, not tokenizers.
    prompt_ids: list[list[int]] = [encode_prompts(usual, m.tokenizer)["input_ids"][0].tolist() for m in models]  # type: ignore[index]
    ids = [[tokens[i % len(tokens)] for i in range(len(prompt_ids[0]))] for tokens in prompt_ids]
    timed = [(system.name, system.model, system.tokenizer, dict(system.alpha) or None) for system in models]
    try:
        new = decoding.max_new_tokens
        rows = [asdict(timing) for timing in measure_efficiency(timed, ids, new_tokens=new, batch_sizes=sizes)]
    finally:
        for system in models:
            system.release()
    if len(sizes) > 1:
        rows = [{**row, "system": f"{row['system']}, batch {row['batch_size']}"} for row in rows]
    return {"efficiency": rows}
