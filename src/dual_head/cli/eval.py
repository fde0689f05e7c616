"""`dual-head eval BENCHMARK --models base=PATH,guided=PATH@1.5`: compare systems on the same questions.

Answers and verdicts are kept in the output folder, so that a killed run goes on and a second one costs nothing.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.cli.loading import DTYPE_HELP
from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal
from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from dual_head.evaluate.judges import JUDGES
from dual_head.files.places import exclusive, require_place
from dual_head.files.reading import yaml_value
from dual_head.options import Options, option
from dual_head.options.flags import OptionParser

# What choices are scored with; they are given, so that no other option changes anything.
OF_CHOICES = {"benchmark", "models", "output_dir", "source", "num_samples", "seed", "batch_size"}
OF_CHOICES |= {"dtype", "device", "trust_remote_code"}
PLAIN_WIDTH = 160
DECODING = "decoding, the same for every system"
PAGE_FILE = "report.html"  # of no other command
REPORTS = ("report.json", "report.md")


@dataclass(kw_only=True)
class EvalOptions(Options):
    """Who is asked what, who judges, and what else is measured."""

    benchmark: str = option(help="one of those below", positional=True)
    models: list[str] = option(
        help="systems: folders of guides (a strength as PATH@1.5 or PATH@helpful:0.5+harmless:1), plain models, "
        "adapters, files of answers, or openai:MODEL@URL; with commas between, or repeated",
        repeat=True,
    )
    output_dir: str = option(help="folder for answers, verdicts and the report")
    source: str | None = option(
        None, "file, folder or hub name; default: where the benchmark is published", heading="questions"
    )
    split: str | None = option(None, "split, where the source has several; default: the published one, or test")
    num_samples: int | None = option(None, "a random so many of them; default: all", least=1)
    chat: bool = option(False, "a text is a user's message; default where a tokenizer has a chat template")
    raw: bool = option(False, "continue texts as they are")
    max_new_tokens: int | None = option(
        None, "default: 128, or half of the smallest context", heading=DECODING, least=1
    )
    temperature: float = option(0.0, "0 is greedy; above it, sample", least=0)
    top_p: float = option(1.0, "nucleus sampling", least=0, most=1)
    top_k: int = option(0, "sample among so many; 0: all", least=0)
    seed: int = option(0, "of the questions picked and of sampling", least=0)
    batch_size: int = option(16, "questions at a time", least=1)
    judge: str | None = option(
        None,
        "rule, rule:module:function, reward:PATH, lm:PATH, openai:MODEL or openai:MODEL@URL, or another of those below",
        heading="judging",
    )
    against: str | None = option(None, "the system that others are compared with, or all; default: the first")
    one_order: bool = option(False, "ask a judge about one order only: cheaper, biased")
    judge_option: list[str] | None = option(
        None,
        "NAME=VALUE, repeatable: template, concurrency, requests_per_minute, timeout, input_price, ...",
        repeat=True,
    )
    reward: list[str] | None = option(
        None,
        "module:function, or the folder of a reward model that guided none of the systems; repeatable",
        heading="measuring",
        repeat=True,
    )
    embedder: str | None = option(None, "sentence-transformers model for coherence")
    base: str | None = option(None, "system under which others that are no guides are measured: KL, perplexity")
    efficiency: str | None = option(
        None, "time and memory of all, in turns, at these batch sizes [1,8]", nargs="?", const="1,8", commas=True
    )
    skip_measures: bool = option(False, "leave out all that is not judged")
    allow_missing: bool = option(
        False, "leave out questions that some have no answer to", heading="when systems differ"
    )
    force: bool = option(False, "compare what was decoded differently, or judged by itself")
    endpoint_option: list[str] | None = option(
        None,
        "NAME=VALUE, repeatable, of systems that are endpoints: concurrency, timeout, limit, ...",
        heading="loading",
        repeat=True,
    )
    dtype: str = option("auto", DTYPE_HELP)
    device: str | None = option(None, "cpu, cuda, cuda:1, mps; default: where it loads")
    trust_remote_code: bool = option(False, "run code that comes with a model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat and self.raw:
            raise DualHeadError("--raw continues texts, and --chat makes them messages. Leave one out.")


build_parser = partial(
    OptionParser,
    EvalOptions,
    command="eval",
    description=__doc__,
    listings={"benchmarks": BENCHMARKS, "judges": JUDGES},
)


def run(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    (args,) = build_parser().read(arguments)
    # Imported late: --help should not wait for numpy.
    from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark

    benchmark = load_benchmark(args.benchmark)
    if isinstance(benchmark, ChoiceBenchmark):
        _require_of_choices(args)
    _require_places(args.models)
    console = Terminal()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    output = Path(args.output_dir)
    command = command_line("dual-head", "eval", *arguments)
    with exclusive(args.output_dir):
        require_place(output, record=PAGE_FILE, writes=REPORTS)
        report = _report(args, benchmark, output, console, command)
    _print(report, output, console)
    return 0


def _report(args: EvalOptions, benchmark: Benchmark, output: Path, console: Terminal, command: str) -> dict[str, Any]:
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark

    if not isinstance(benchmark, ChoiceBenchmark):
        from dual_head.evaluate.run import evaluate

        return evaluate(_options(args), output, console, command=command)
    from dual_head.evaluate.multiple_choice import evaluate_choices

    return evaluate_choices(
        benchmark,
        args.models,
        args.source,
        output,
        console,
        command=command,
        num_samples=args.num_samples,
        seed=args.seed,
        batch_size=args.batch_size,
        load=_load(args),
    )


def _require_places(models: Sequence[str]) -> None:
    """Refuse a system whose path is not there, and can be no name on the hub."""
    from dual_head.evaluate.systems.specs import ENDPOINT, parse_systems

    for spec in parse_systems(models):
        there = spec.path.startswith(ENDPOINT) or Path(spec.path).expanduser().exists()
        if not there and not is_hub_name(spec.path):
            raise DualHeadError(
                f"There is no system at '{spec.path}': there is no such folder or file. Give a folder of guides, a "
                "causal LM (folder or hub name), a PEFT adapter, or a file of answers."
            )


def _require_of_choices(args: EvalOptions) -> None:
    changed = [f.name for f in fields(args) if f.default is MISSING or getattr(args, f.name) != f.default]
    if ignored := [f"--{name}" for name in changed if name not in OF_CHOICES]:
        raise DualHeadError(
            f"'{args.benchmark}' asks how likely given answers are: nothing is generated, judged or measured, so that "
            f"{', '.join(ignored)} would change nothing. Leave {'them' if len(ignored) > 1 else 'it'} out."
        )


def _options(args: EvalOptions) -> Any:
    from dual_head.evaluate import Decoding
    from dual_head.evaluate.run import EvaluationOptions, usual_new_tokens

    decoding = Decoding(
        max_new_tokens=args.max_new_tokens or usual_new_tokens(args.models, **_load(args)),
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
    )
    options: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(EvaluationOptions)}
    options |= {
        "models": tuple(args.models),
        "chat": True if args.chat else False if args.raw else None,
        "judge_options": _named("judge_option", args.judge_option),
        "rewards": tuple(args.reward or ()),
        "efficiency": _batch_sizes(args.efficiency),
        "decoding": decoding,
    }
    return EvaluationOptions(**options | _load(args))


def _named(flag: str, options: Sequence[str] | None) -> dict[str, Any]:
    """Read NAME=VALUE, values as YAML; which names there are is the judge's or the endpoint's to say."""
    if wrong := [text for text in options or () if "=" not in text]:
        raise DualHeadError(f"--{flag} is NAME=VALUE, such as concurrency=8, not '{wrong[0]}'.")
    try:
        pairs = (text.partition("=") for text in options or ())
        return {name.strip(): yaml_value(value) for name, _, value in pairs}
    except ValueError as error:
        raise DualHeadError(f"Cannot read a --{flag}: {error}") from error


def _batch_sizes(given: str | None) -> tuple[int, ...]:
    """Read "1,8,32"; nothing where nothing is to be timed."""
    sizes = [part.strip() for part in (given or "").split(",")] if given is not None else []
    if wrong := [part for part in sizes if not part.isdecimal() or not int(part)]:
        raise DualHeadError(f"--efficiency takes batch sizes, such as 1,8,32, not '{wrong[0]}'.")
    return tuple(map(int, dict.fromkeys(sizes)))


def _load(args: EvalOptions) -> dict[str, Any]:
    return {
        "dtype": args.dtype,
        "device": args.device,
        "trust_remote_code": args.trust_remote_code,
        "endpoint_options": _named("endpoint_option", args.endpoint_option),
    }


def _print(report: dict[str, Any], output: Path, console: Console) -> None:
    from dual_head.evaluate.report.page import efficiency_table

    if pairs := report.get("pairs"):
        # Each row of it is a claim: who, against whom, how often, how sure.
        table = Table("", title=f"{report['benchmark']['questions']} questions, {report['judge']['name']}")
        for column in ("win / tie / loss", "win rate", "95% interval", "length-controlled", "unparsable"):
            table.add_column(column, justify="right")
        table.box = box.SIMPLE_HEAD
        for pair in pairs:
            low, high = pair["interval"]
            controlled = pair["length_controlled"]
            table.add_row(
                f"{pair['a']} against {pair['b']}",
                f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
                f"{pair['rate']:.1%}",
                f"{low:.1%} to {high:.1%}",
                "" if controlled is None else f"{controlled:.1%}",
                str(pair["unparsable"]),
            )
        console.print(table)
    quality = report.get("quality") or {}
    if rows := quality.get("rows"):
        table = Table("mean", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_column(row["system"], justify="right")
        for metric in quality["metrics"]:
            values = [row["values"].get(metric["name"]) for row in rows]
            table.add_row(metric["name"], *("" if value is None else f"{value['mean']:.4g}" for value in values))
        console.print(table)
    timed = efficiency_table(report)
    for found in [*([timed] if timed else []), *report.get("tables", [])]:
        first, *others = found["columns"]
        table = Table(title=found["title"], box=box.SIMPLE_HEAD)
        table.add_column(first, no_wrap=True)
        for column in others:
            table.add_column(column, justify="right")
        for cells in found["rows"]:
            table.add_row(*map(str, cells))
        console.print(table)
    for warning in report.get("warnings", []):
        console.print(f"note: {warning}", soft_wrap=True)
    for label, name in (("page", "report.html"), ("table", "report.md"), ("figures", "report.json")):
        console.print(f"{label:<8} {output / name}", soft_wrap=True)
