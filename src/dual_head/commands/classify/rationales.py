"""`dual-head classify rationales`: a teacher writes a rationale for each row, knowing its label.

The teacher is a model behind any OpenAI-compatible endpoint. What it wrote is kept as it comes: the same command goes
on where it stopped, and asks again for what had no reply.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dual_head.commands.classify.dataset import add_dataset, load_dataset
from dual_head.commands.help import Help, Parser, at_least
from dual_head.gauge import Gauge
from dual_head.places import exclusive, require_unread
from dual_head.secrets import masked
from dual_head.terminal import Terminal

if TYPE_CHECKING:
    from dual_head.classify.teacher import Ask, Written


def run(arguments: Sequence[str]) -> int:
    """Parse, read, ask, say what came; 1 where rows are left without a reply."""
    args = _parser().parse_args(arguments)
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.classify.teacher import TeacherOptions, write_rationales

    options = TeacherOptions(
        attempts=args.attempts, sentences=(args.least_sentences, args.most_sentences), task=args.task or ""
    )
    ask = _teacher(args)
    loaded = load_dataset(args)
    console = Terminal(soft_wrap=True)
    console.print(loaded.drops.table())
    require_unread(Path(args.output), [args.dataset])
    with exclusive(args.output), Gauge("rationales", len(loaded.examples)) as gauge:
        found = write_rationales(
            loaded.examples,
            loaded.labels,
            ask,
            args.output,
            teacher=masked(args.model),  # it may hold an address
            options=options,
            on_row=lambda found: gauge.reach(found.before + found.written),
        )
    _print(found, args, console)
    return 1 if found.unanswered else 0


def _teacher(args: argparse.Namespace) -> "Ask":
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


def _print(found: "Written", args: argparse.Namespace, console: Console) -> None:
    flagged = sum(found.flags.values())
    console.print(f"{found.rows:>8} rows\n{found.before:>8} had their rationale\n{found.written:>8} written now")
    console.print(f"{found.asked:>8} requests for them")
    for flag, count in found.flags.most_common():
        console.print(f"{count:>8} kept after {args.attempts} attempts with a flaw: {flag}")
    if found.unlabelled:
        console.print(f"{found.unlabelled:>8} left out: no label to explain")
    if found.unanswered:
        console.print(f"{found.unanswered:>8} without a reply: run the same command again, and only they are asked for")
    console.print(f"rationales {args.output}" + (' (flawed ones have "flags")' if flagged else ""))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dual-head classify rationales",
        usage="dual-head classify rationales --dataset DATA --teacher URL --model NAME --output FILE.jsonl [options]",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    add_dataset(parser)
    who = parser.add_argument_group("teacher")
    who.add_argument("--teacher", required=True, help="address of the endpoint, as http://127.0.0.1:8000/v1")
    who.add_argument("--model", required=True, help="the model's name there; the key is read from OPENAI_API_KEY")
    who.add_argument("--concurrency", type=at_least(1), default=8, help="requests at once")
    who.add_argument("--requests_per_minute", type=at_least(1e-9, float), help="at most so many")
    who.add_argument("--max_retries", type=at_least(0), default=4, help="after a timeout, 429 or 5xx")
    who.add_argument("--timeout", type=at_least(1e-3, float), default=120.0, help="seconds for a reply")
    who.add_argument("--max_tokens", type=at_least(1), default=512, help="of a reply")
    who.add_argument("--temperature", type=at_least(0, float), default=0.0, help="0 is greedy")
    who.add_argument("--seed", type=at_least(0), default=0, help="sent along, for endpoints that heed it")
    what = parser.add_argument_group("rationales")
    what.add_argument("--output", metavar="FILE", required=True, help="JSONL to write, or to go on with")
    what.add_argument("--task", help="a sentence for the teacher on what the labels mean")
    what.add_argument("--attempts", type=at_least(1), default=3, help="how often a flawed rationale is asked for")
    what.add_argument("--least_sentences", type=at_least(1), default=2, help="of a rationale")
    what.add_argument("--most_sentences", type=at_least(1), default=5, help="of a rationale")
    return parser
