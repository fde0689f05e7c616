"""Serving on this machine's processor: speed and waits at several loads, beside peers; starts, memory, prefixes.

    python benchmarks/serve.py                          # all sections, some nine minutes on two idle cores
    python benchmarks/serve.py http --clients 1 4       # some of them; the others keep the figures they have

Sides take turns in one run. A guide's ratio is of processor time a token, which a shared machine disturbs least, in the
same round. Figures go to benchmarks/results/serve.json, and from there into docs/results/speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import serve_http
import serve_loads
import serve_pages
import torch
from measure import begin_with_huge_pages, machine
from report import PAGE, Cell, Section, collect, fill, markdown, read
from serve_loads import HIDDEN, NEW, ONE_BY_ONE, PROMPT, REFERENCE, STEP, TRANSFORMERS, VOCABULARY, Run

RESULTS = Path(__file__).parent / "results" / "serve.json"
WAITS = ("first token, ms, p50", "p95", "between tokens, ms, p50", "p95")
LOADS = ("clients", "side", "tokens a second", "CPU ms a token", "x no guide", "spread", "bound", *WAITS)
STARTS = 2


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all of them where none is named")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of every side")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the figures")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    begin_with_huge_pages()
    torch.manual_seed(0)
    if args.memory:
        print(json.dumps(serve_pages.memory()))
        return
    for name in args.sections or SECTIONS:
        print(f"{name} ...", flush=True)
        for section in SECTIONS[name](args):
            collect(section, machine().as_dict(), args.output)
            print(markdown(read(args.output)["sections"][section.name]), flush=True)
    collect(aims(read(args.output)["sections"]), machine().as_dict(), args.output)
    print(markdown(read(args.output)["sections"]["serve-aims"]))
    if args.output == RESULTS:
        fill(PAGE, RESULTS)


# ---- sections --------------------------------------------------------------------------------------------


def _load_section(name: str, of: str, lm: Any, tokenizer: Any, args: argparse.Namespace) -> Section:
    rows: list[list[Cell]] = []
    for load, runs in serve_loads.in_turns(
        serve_loads.sides(lm, tokenizer, max(args.clients)), args.clients, args.rounds
    ):
        extra = NEW * serve_loads.vocabulary_product(lm, load)
        rows += load_rows(load, runs, extra)
        print(f"  {load} clients", flush=True)
    return Section(
        name=name,
        columns=LOADS,
        rows=tuple(map(tuple, rows)),
        note=f"{of}. Clients stream {NEW} greedy tokens after {PROMPT} of their own, all at once; steps of {STEP} "
        f"tokens, {args.rounds} rounds in turns. x no guide: processor time a token of the plain backbone under our "
        "engine, in that of the side, of the same round.",
        bound="what the plain backbone takes, and one more product with a matrix as large as its lm_head for every "
        "token, as torch makes it.",
    )


def load_rows(load: int, runs: Mapping[str, Sequence[Run]], extra: float) -> list[list[Cell]]:
    """A row for each side; extra: processor seconds of the products that bound guides in vocabulary space."""
    plain = statistics.median(run.cpu for run in runs[REFERENCE])
    rows: list[list[Cell]] = []
    for name, of_side in runs.items():
        ratios = serve_loads.ratios(of_side, runs[REFERENCE])
        speed, cpu, *waits = serve_loads.per_token(of_side)
        bound = plain / (plain + extra) if name in VOCABULARY else None
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append([load, name, speed, cpu, statistics.median(ratios), spread, bound, *waits])
    return rows


def _real(args: argparse.Namespace) -> Iterator[Section]:
    lm, tokenizer = serve_loads.real_model()
    yield _load_section("serve-real", "SmolLM2-135M-Instruct in fp32", lm, tokenizer, args)


def _reference(args: argparse.Namespace) -> Iterator[Section]:
    lm, tokenizer = serve_loads.reference_model()
    yield _load_section("serve-reference", "The Llama of the reference job", lm, tokenizer, args)


def _http(args: argparse.Namespace) -> Iterator[Section]:
    _, tokenizer = serve_loads.real_model()
    start, runs, memory, same = serve_http.measure(tokenizer, args.clients, args.rounds, STARTS)
    yield Section(
        name="serve-http",
        columns=("clients", "server", "tokens a second", "CPU ms a token", *WAITS),
        rows=tuple(
            (load, name, *serve_loads.per_token(of_server))
            for load, sides in runs.items()
            for name, of_server in sides.items()
        ),
        note="SmolLM2-135M-Instruct without a guide, a process for each server, the same streamed requests over HTTP "
        f"in turns, {args.rounds} rounds; processor time is the server's. {same}.",
    )
    yield Section(
        name="serve-start",
        columns=("server", "s until it is well", "s until the first token", "MiB after the loads"),
        rows=tuple(
            (name, statistics.median(each.well), statistics.median(each.first_token), memory[name])
            for name, each in start.items()
        ),
        note=f"From the start of the process, with its files in the system's cache; medians of {STARTS}. The first "
        "token is that of a streamed request, sent when /health says that the server is well.",
    )


def _memory(args: argparse.Namespace) -> Iterator[Section]:
    del args
    child = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(child.stderr)
    yield Section(
        name="serve-memory",
        columns=(
            *("side", "tokens", "bytes of a token in pages", "in masks"),
            *("MiB of a request by these", "MiB measured"),
        ),
        rows=tuple(map(tuple, json.loads(child.stdout.splitlines()[-1]))),
        note=f"One more concurrent request in fp32. Measured: the peak of a process with {serve_pages.MANY} requests, "
        f"less that with {serve_pages.FEW}, for each of the {serve_pages.MANY - serve_pages.FEW} more.",
    )


def _prefixes(args: argparse.Namespace) -> Iterator[Section]:
    del args
    yield Section(
        name="serve-prefixes",
        columns=(
            *("side", "requests", "of prompt tokens from pages, prompts of their own", "one system prompt"),
            *("first token, ms, p50, prompts of their own", "one system prompt", "x faster"),
        ),
        rows=tuple(map(tuple, serve_pages.prefixes(*serve_loads.real_model()))),
        note=f"SmolLM2-135M-Instruct; {serve_pages.SYSTEM} tokens of a system prompt and {serve_pages.OWN} of a "
        "question, one request after the other, each at a strength of its own. Waits leave out the first request.",
    )


def _attention(args: argparse.Namespace) -> Iterator[Section]:
    yield Section(
        name="serve-attention",
        columns=(
            *("weights", "requests at once", "s, each with its own keys", "s, with all keys under a mask"),
            *("x faster", "lower quartile", "upper quartile"),
        ),
        rows=tuple(map(tuple, serve_pages.attention(args.rounds))),
        note=f"SmolLM2-135M-Instruct with a hidden guide; {serve_pages.CROWD_PROMPT} tokens of a prompt and "
        f"{serve_pages.CROWD_REPLY} of a reply, all sent at once, in turns; {args.rounds} rounds after a first one.",
    )


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Section]]] = {
    "real": _real,
    "reference": _reference,
    "http": _http,
    "memory": _memory,
    "prefixes": _prefixes,
    "attention": _attention,
}


# ---- aims ------------------------------------------------------------------------------------------------


def aims(sections: Mapping[str, Mapping[str, Any]]) -> Section:
    """The aims, with what the sections that were measured have of each."""
    rows: list[list[Cell]] = []
    for name, model in (("serve-real", "SmolLM2"), ("serve-reference", "reference Llama")):
        for load, sides in _by_load(sections.get(name), "side").items():
            rows += [[f"{model}, {load} clients", *aim] for aim in aims_of_load(load, sides)]
    for load, sides in _by_load(sections.get("serve-http"), "server").items():
        ratio = sides[serve_http.OURS]["tokens a second"] / sides[serve_http.THEIRS]["tokens a second"]
        rows.append([f"SmolLM2 over HTTP, {load} clients", "tokens a second, x `transformers serve`", 1.0, ratio])
    return Section(
        name="serve-aims",
        columns=("load", "figure", "at least", "measured", "met"),
        rows=tuple((*row, "yes" if row[3] >= row[2] else "no") for row in rows),  # type: ignore[operator]
        note="Of the tables above.",
    )


def aims_of_load(load: int, sides: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Cell]]:
    """[figure, least, measured] of every aim that a load has."""
    for name in HIDDEN:
        yield [f"{name}, x no guide", 0.97, sides[name]["x no guide"]]
    for name in VOCABULARY:
        yield [f"{name}, x its bound", 0.97, sides[name]["x no guide"] / sides[name]["bound"]]
    speed = {name: side["tokens a second"] for name, side in sides.items()}
    if load >= serve_loads.ROWS:
        yield ["one hidden guide, tokens a second, x one by one", 3.0, speed[HIDDEN[0]] / speed[ONE_BY_ONE]]
    yield ["no guide, tokens a second, x transformers' own batching", 1.0, speed[REFERENCE] / speed[TRANSFORMERS]]


def _by_load(section: Mapping[str, Any] | None, label: str) -> dict[int, dict[str, dict[str, Any]]]:
    """{load: {side: {column: figure}}} of a section; nothing where it was not measured."""
    loads: dict[int, dict[str, dict[str, Any]]] = {}
    for row in section["rows"] if section else ():
        # p95 is there twice; no aim reads it.
        figures = dict(zip(section["columns"], row, strict=True))  # type: ignore[index]
        loads.setdefault(figures["clients"], {})[figures[label]] = figures
    return loads


if __name__ == "__main__":
    main()
