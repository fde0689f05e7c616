"""How fast systems are and how much memory they take, in turns in one run: prefill and decoding apart.

A shared machine drifts by the minute, so every round runs each system once, each round begins with another one, and a
ratio compares two times of one round:

    round 1: A B C      round 2: B C A      round 3: C A B
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError
from dual_head.evaluate.metrics.costs import MIB, Cost, cost_of
from dual_head.evaluate.metrics.likelihood import context_of
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha

__all__ = ["Timing", "measure_efficiency"]

System = tuple[str, Any, PreTrainedTokenizerBase, Alpha]  # name, model, tokenizer, strength (None for its own)
PROCESS = Path("/proc/self")
RESET_HIGH_WATER_MARK = "5"  # man 5 proc, clear_refs
LEAST = 1e-9  # seconds; a clock may stand still between two looks


@dataclass(frozen=True, kw_only=True)
class Timing(Cost):
    """One system at one batch size, medians over rounds.

    prefill_ms: the prompt and the first token; decode_ms: each further one; tokens_per_s: of the whole batch while
    decoding; peak_mib: its weights, and the most that generating took beside them (of a process without a GPU, by
    how much its resident memory grew), None where that cannot be seen; ratio and prefill_ratio: decode and prefill
    times by those of the first system in the same round, {"median", "low", "high"}.
    """

    system: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    prefill_ms: float
    decode_ms: float
    tokens_per_s: float
    peak_mib: float | None
    ratio: dict[str, float]
    prefill_ratio: dict[str, float]


class _Seconds(NamedTuple):
    prefill: float
    decode: float  # per token


def measure_efficiency(
    systems: Sequence[System],
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 128,
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Generate `new_tokens` greedily after a prompt, whatever ends a reply, in every system in turns.

        prefill = t(1 token)        decode = (t(n tokens) - t(1 token)) / (n - 1)

    prompts: the prompt in the tokens of each system, as many for all, repeated to a batch; rounds: those that count,
    after one to warm up in which memory is read. All systems are in memory at once. Rows by batch size, then system.
    Errors: no or equal names, prompts of several lengths or that leave no room, a model in training mode.
    """
    _check(systems, prompts, new_tokens, batch_sizes, rounds)
    gc.collect()
    gc.freeze()  # so that the collections between runs look at what the runs left, and not at every library
    try:
        return [row for size in batch_sizes for row in _in_turns(systems, prompts, new_tokens, size, rounds, clock)]
    finally:
        gc.unfreeze()


def _in_turns(
    systems: Sequence[System],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int,
    rounds: int,
    clock: Callable[[], float],
) -> list[Timing]:
    """One row per system at one batch size."""
    batches = [_batch(system, ids, batch_size) for system, ids in zip(systems, prompts, strict=True)]
    peaks = [_peak(system, ids, new_tokens) for system, ids in zip(systems, batches, strict=True)]
    seconds: list[list[_Seconds]] = [[] for _ in systems]
    for turn in range(rounds):
        for i in range(len(systems)):
            place = (turn + i) % len(systems)
            seconds[place].append(_timed(systems[place], batches[place], new_tokens, clock))
    return [
        _row(system, times, seconds[0], peak, batch_size, len(prompts[0]), new_tokens)
        for system, times, peak in zip(systems, seconds, peaks, strict=True)
    ]


def _row(
    system: System,
    times: Sequence[_Seconds],
    first: Sequence[_Seconds],
    growth: float | None,
    batch_size: int,
    prompt_tokens: int,
    new_tokens: int,
) -> Timing:
    name, model, _, alpha = system
    parts = cost_of(model, alpha)
    decode = statistics.median(seconds.decode for seconds in times)
    return Timing(
        **asdict(parts),
        system=name,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=len(times),
        prefill_ms=1e3 * statistics.median(seconds.prefill for seconds in times),
        decode_ms=1e3 * decode,
        tokens_per_s=batch_size / decode,
        peak_mib=None if growth is None else parts.weights_mib + growth,
        ratio=_ratio([a.decode / b.decode for a, b in zip(times, first, strict=True)]),
        prefill_ratio=_ratio([a.prefill / b.prefill for a, b in zip(times, first, strict=True)]),
    )


def _ratio(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


# ---- running ---------------------------------------------------------------------------------------------


def _timed(system: System, ids: Tensor, new_tokens: int, clock: Callable[[], float]) -> _Seconds:
    gc.collect()  # so that no system pays for what another left
    prefill = _seconds(lambda: _generate(system, ids, 1), ids.device, clock)
    total = _seconds(lambda: _generate(system, ids, new_tokens), ids.device, clock)
    return _Seconds(max(LEAST, prefill), max(LEAST, total - prefill) / (new_tokens - 1))


def _seconds(run: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    _settle(device)
    start = clock()
    run()
    _settle(device)
    return clock() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _generate(system: System, ids: Tensor, new_tokens: int) -> Tensor:
    name, model, tokenizer, alpha = system
    strength: dict[str, Any] = {"alpha": alpha} if isinstance(model, AlignedModel) else {}
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0  # there is nothing to pad
    sequences = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_k=None,
        top_p=None,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad,
        **strength,
    )
    count = sequences.shape[1] - ids.shape[1]
    if count != new_tokens:
        raise DualHeadError(f"'{name}' generated {count} tokens instead of {new_tokens}, so its time says nothing.")
    return sequences


def _batch(system: System, prompt_ids: Sequence[int], batch_size: int) -> Tensor:
    device = system[1].get_input_embeddings().weight.device
    return torch.tensor([list(prompt_ids)], device=device).repeat(batch_size, 1)


def _check(
    systems: Sequence[System],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_sizes: Sequence[int],
    rounds: int,
) -> None:
    names = [system[0] for system in systems]
    if not names or len(set(names)) < len(names):
        raise DualHeadError(f"Efficiency is that of one or more systems, each of a name of its own, not {names}.")
    lengths = {len(ids) for ids in prompts}
    if len(prompts) != len(systems) or len(lengths) > 1:
        raise DualHeadError(f"Every system has a prompt and all are of one length, not of {sorted(lengths)} tokens.")
    length = max(lengths)
    if new_tokens < 2 or rounds < 1 or not length or not batch_sizes or min(batch_sizes) < 1:
        raise DualHeadError(
            "new_tokens is at least 2, rounds and batch sizes at least 1, and a prompt has a token; "
            f"not {new_tokens}, {rounds}, {list(batch_sizes)} and {length}."
        )
    for name, model, _, _ in systems:
        context = context_of(model)
        if context is not None and length + new_tokens > context:
            raise DualHeadError(
                f"{length} tokens of a prompt and {new_tokens} new ones exceed the {context} that '{name}' "
                "reads. Shorten the prompt, or lower new_tokens."
            )
        if model.training:
            raise DualHeadError(f"'{name}' is in training mode, where it keeps no cache. Call model.eval() first.")


# ---- memory ----------------------------------------------------------------------------------------------


def _peak(system: System, ids: Tensor, new_tokens: int) -> float | None:
    """MiB that generating took beside what was there before, seen in a second run: the first one warms up."""
    _generate(system, ids, new_tokens)
    gc.collect()
    if ids.device.type == "cuda":
        before = torch.cuda.memory_allocated(ids.device)
        torch.cuda.reset_peak_memory_stats(ids.device)
        _generate(system, ids, new_tokens)
        return (torch.cuda.max_memory_allocated(ids.device) - before) / MIB
    if ids.device.type != "cpu" or not (PROCESS / "clear_refs").exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; what was freed before is given back, so that using it again counts
        trim(0)
    try:
        (PROCESS / "clear_refs").write_text(RESET_HIGH_WATER_MARK)
    except OSError:  # a container may forbid it
        return None
    floor = _resident("VmRSS")
    _generate(system, ids, new_tokens)
    return max(0.0, _resident("VmHWM") - floor)


def _resident(name: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024  # given in KiB
