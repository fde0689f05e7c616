"""`dual-head classify rationales`: have a teacher write a rationale for each row, knowing its label.

The teacher is a model behind any OpenAI-compatible endpoint. Replies are kept as they come: the same command goes on
where it stopped, and asks again for rows without a reply.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dual_head.cli.classify.dataset import DatasetOptions, load_dataset
from dual_head.console.gauge import Gauge
from dual_head.console.secrets import masked
from dual_head.console.terminal import Terminal
from dual_head.files.places import exclusive, require_unread
from dual_head.options import option
from dual_head.options.flags import OptionParser

if TYPE_CHECKING:
    from dual_head.classify.rationales.teacher import Ask, Written


@dataclass(kw_only=True)
class RationaleOptions(DatasetOptions):
    """Who writes rationales, how, and where to."""

    teacher: str = option(help="address of the endpoint, as http://127.0.0.1:8000/v1", heading="teacher")
    model: str = option(help="the model's name there; the key is read from OPENAI_API_KEY")
    concurrency: int = option(8, "requests at once", least=1)
    requests_per_minute: float | None = option(None, "most requests a minute", above=0)
    max_retries: int = option(4, "retries after a timeout, 429 or 5xx", least=0)
    timeout: float = option(120.0, "seconds for a reply", least=1e-3, most=10**6)
    max_tokens: int = option(512, "longest reply in tokens", least=1)
    temperature: float = option(0.0, "temperature of its sampling; 0 is greedy", least=0)
    seed: int = option(0, "sent with each request, for endpoints that read it", least=0)
    output: str = option(help="JSONL to write, or to go on with", heading="rationales", metavar="FILE")
    task: str | None = option(None, "a sentence for the teacher on what the labels mean")
    attempts: int = option(3, "how often a flawed rationale is asked for", least=1)
    least_sentences: int = option(2, "fewest sentences of a rationale", least=1)
    most_sentences: int = option(5, "most sentences of a rationale", least=1)


build_parser = partial(OptionParser, RationaleOptions, command="classify rationales", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, read, ask, say what came; 1 where rows are left without a reply."""
    (args,) = build_parser().read(arguments)
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.classify.rationales.teacher import TeacherOptions, write_rationales

    options = TeacherOptions(
        attempts=args.attempts, sentences=(args.least_sentences, args.most_sentences), task=args.task or ""
    )
    ask = _teacher(args)
    loaded = load_dataset(args)
    console = Terminal(soft_wrap=True)
    console.print(loaded.drops.table())
    require_unread(Path(args.output), [args.dataset])
    with exclusive(args.output), Gauge("rationales", len(loaded.examples)) as gauge:
        account = write_rationales(
            loaded.examples,
            loaded.labels,
            ask,
            args.output,
            teacher=masked(args.model),  # it may hold an address
            options=options,
            multi_label=args.multi_label,
            on_row=lambda account: gauge.reach(account.before + account.written),
        )
    _print(account, args, console)
    return 1 if account.unanswered else 0


def _teacher(args: RationaleOptions) -> "Ask":
    """Ask the endpoint as judges are asked: several requests at once, retries, and a remedy where it is down."""
    from dual_head.evaluate.endpoints.client import Endpoint, EndpointOptions, Request

    names = ("concurrency", "requests_per_minute", "max_retries", "timeout")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    endpoint = Endpoint(args.model, EndpointOptions(base_url=args.teacher, **options), noun="teacher")

    def ask(talks: Sequence[Any]) -> Iterator[tuple[int, str | None]]:
        requests = [Request(talk, args.max_tokens, args.temperature, args.seed) for talk in talks]
        for index, reply in endpoint.ask(requests):
            yield index, None if reply.flaw else reply.text

    return ask


def _print(account: "Written", args: RationaleOptions, console: Console) -> None:
    flagged = sum(account.flags.values())
    console.print(f"{account.rows:>8} rows\n{account.before:>8} had their rationale\n{account.written:>8} written now")
    console.print(f"{account.asked:>8} requests for them")
    for flag, count in account.flags.most_common():
        console.print(f"{count:>8} kept after {args.attempts} attempts with a flaw: {flag}")
    if account.unlabelled:
        console.print(f"{account.unlabelled:>8} left out: no label to explain")
    if account.unanswered:
        console.print(
            f"{account.unanswered:>8} without a reply: run the same command again, and only they are asked for"
        )
    console.print(f"rationales {args.output}" + (' (flawed ones have "flags")' if flagged else ""))
