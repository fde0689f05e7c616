"""Serving on this machine's processor: tokens a second and waits at several loads, each side in turns in one process.

    python benchmarks/serve.py                     # the real model of `make real`
    python benchmarks/serve.py --clients 1 4       # some loads

Sides: the plain backbone under transformers' own continuous batching, the same under our engine, guides of several
kinds with strengths of their own for every request, and one by one with generate. Processor time is what a shared
machine disturbs least, so ratios are of it: of medians over the rounds, against the plain backbone under our engine.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import machine
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

from dual_head import AlignedModel, HiddenConfig, LinearConfig, RewardHeadConfig
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Sampling

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "serve.json"
REAL = Path(os.environ.get("DUAL_HEAD_REAL", ROOT / ".venv" / "real" / "smollm2"))
PROMPT, NEW = 48, 24  # tokens
GUIDES: dict[str, dict[str, Any]] = {
    "no guide": {},
    "one hidden guide": {"a": HiddenConfig(init_std=0.02)},
    "four hidden guides": {name: HiddenConfig(init_std=0.02) for name in "abcd"},
    "linear guide": {"a": LinearConfig(init_std=0.01)},
    "reward head with a gate": {"a": RewardHeadConfig(init_std=0.01)},
}
REFERENCE, TRANSFORMERS, ONE_BY_ONE = "no guide", "no guide, transformers' own batching", "one hidden guide, one by one"


@dataclass
class Run:
    """Seconds of one round: of the processor and of the clock, to first tokens, and between tokens."""

    cpu: float
    wall: float
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def main() -> None:
    """Measure every side at every load, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of every side")
    parser.add_argument("--sides", nargs="+", help="some sides, beside the reference")
    args = parser.parse_args()
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32).eval()
    lm.generation_config.eos_token_id = None
    results = {}
    for clients in args.clients:
        sides = {name: side for name, side in _sides(lm, clients).items() if name == REFERENCE or _chosen(name, args)}
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for round_ in range(args.rounds + 1):
            for name, side in sides.items():
                run = side(round_)
                if round_:  # the first warms up
                    runs[name].append(run)
        results[clients] = _figures(runs, clients * NEW)
        print(_table(clients, results[clients]), flush=True)
    RESULTS.write_text(json.dumps({"machine": machine().as_dict(), "clients": results}, indent=1) + "\n")


def _chosen(name: str, args: argparse.Namespace) -> bool:
    return args.sides is None or name in args.sides


def _sides(lm: Any, clients: int) -> dict[str, Callable[[int], Run]]:
    tokenizer = AutoTokenizer.from_pretrained(REAL)
    blocks = clients * ((PROMPT + NEW) // 32 + 2) + 8
    sides: dict[str, Callable[[int], Run]] = {}
    for name, guides in GUIDES.items():
        model = AlignedModel.from_backbone(lm, guides)
        engine = Engine(model, tokenizer, EngineSettings(num_blocks=blocks, max_batch_tokens=256, max_rows=16))
        sides[name] = lambda round_, engine=engine: _streams(engine, clients, round_)
        if name == "one hidden guide":
            one = model
    sides[TRANSFORMERS] = lambda round_: _transformers(lm, clients, blocks, round_)
    sides[ONE_BY_ONE] = lambda round_: _one_by_one(one, clients, round_)
    return sides


def _prompts(clients: int, round_: int) -> list[list[int]]:
    """Prompts that no round has in common, so that no page serves twice."""
    generator = torch.Generator().manual_seed(1000 * clients + round_)
    return torch.randint(3, 40_000, (clients, PROMPT), generator=generator).tolist()


def _strengths(names: Mapping[str, Any], i: int) -> dict[str, float]:
    return {name: 0.1 * (1 + i + j) for j, name in enumerate(names)}


def _streams(engine: Engine, clients: int, round_: int) -> Run:
    names = engine.model.config.guides or {}

    async def client(i: int, prompt: list[int]) -> list[float]:
        request = GenerationRequest(prompt, NEW, _strengths(names, i), Sampling(temperature=0.0))
        times = [time.perf_counter()]
        async for piece in engine.stream(request):
            times += [time.perf_counter()] * len(piece.tokens)
        return times

    async def all_at_once() -> list[list[float]]:
        return await asyncio.gather(*[client(i, prompt) for i, prompt in enumerate(_prompts(clients, round_))])

    with engine:
        cpu, wall = time.process_time(), time.perf_counter()
        times = asyncio.run(all_at_once())
        run = Run(time.process_time() - cpu, time.perf_counter() - wall)
    for each in times:
        waits = [after - before for before, after in pairwise(each)]
        run.first.append(waits[0])
        run.between += waits[1:]
    return run


def _transformers(lm: Any, clients: int, blocks: int, round_: int) -> Run:
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=-1)
    sizes = ContinuousBatchingConfig(
        page_size=32, num_blocks=blocks, max_batch_tokens=256, max_requests_per_batch=16, auto_switch_to_flash=False
    )
    manager = lm.init_continuous_batching(config, continuous_batching_config=sizes)
    manager.warmup()
    manager.start()
    cpu, wall = time.process_time(), time.perf_counter()
    for prompt in _prompts(clients, round_):
        manager.add_request(prompt, max_new_tokens=NEW)
    left = clients
    while left:
        output = manager.get_result(timeout=1)
        left -= output is not None and output.is_finished()
    run = Run(time.process_time() - cpu, time.perf_counter() - wall)
    manager.stop(block=True)
    return run


def _one_by_one(model: AlignedModel, clients: int, round_: int) -> Run:
    cpu, wall = time.process_time(), time.perf_counter()
    for i, prompt in enumerate(_prompts(clients, round_)):
        strengths = _strengths(model.config.guides or {}, i)
        model.generate(torch.tensor([prompt]), alpha=strengths, max_new_tokens=NEW, do_sample=False)
    return Run(time.process_time() - cpu, time.perf_counter() - wall)


def _figures(runs: Mapping[str, list[Run]], tokens: int) -> dict[str, dict[str, float | None]]:
    reference = statistics.median(run.cpu for run in runs[REFERENCE])
    figures = {}
    for name, each in runs.items():
        cpu = statistics.median(run.cpu for run in each)
        first = sorted(wait for run in each for wait in run.first)
        between = sorted(wait for run in each for wait in run.between)
        figures[name] = {
            "tokens a second": tokens / statistics.median(run.wall for run in each),
            "CPU ms a token": 1000 * cpu / tokens,
            "ratio": reference / cpu,
            "first token, ms, p50": _at(first, 0.5),
            "p95": _at(first, 0.95),
            "between tokens, ms, p50": _at(between, 0.5),
            "p95 ": _at(between, 0.95),
        }
    return figures


def _at(waits: list[float], share: float) -> float | None:
    return 1000 * waits[min(len(waits) - 1, int(share * len(waits)))] if waits else None


def _table(clients: int, figures: Mapping[str, Mapping[str, float | None]]) -> str:
    columns = list(next(iter(figures.values())))
    lines = [f"| {clients} clients | {' | '.join(columns)} |", f"|:---|{'---:|' * len(columns)}"]
    for name, values in figures.items():
        cells = ["" if x is None else f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in values.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
