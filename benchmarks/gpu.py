"""One GPU and the shape of Llama-2-7B: decoding, the reductions against fused losses, training, and peak memory.

    python benchmarks/gpu.py                          # some minutes on a GPU of 80 GB; writes results/gpu.json
    python benchmarks/gpu.py --small --output FILE    # the same on the CPU with a tiny model, to try the script itself

Weights are random, in bf16, made on the device: speed depends on shapes alone. Every section is kept as soon as it is
measured; what is left when time is out is skipped, and says so. It knows no data and judges no quality.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import job
import measure
import scale
import torch
from gpu_losses import Responses, Side, fused_sides, head_loss, library_side, plain_side, products, with_gradient
from measure import MB, compare, peak_memory
from report import PAGE, Cell, Section, collect, fill
from scale import FULL, HIDDEN, SHAPES, Data, Shape
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dual_head import AlignedModel, HiddenConfig, LinearConfig, RewardHeadConfig, method
from dual_head.data.collate import PairCollator
from dual_head.export.merge import merge
from dual_head.train.feature_cache import FeatureCollator
from dual_head.train.step import GuidedLoss

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SECONDS = 500  # of all parts together; what would begin later is skipped
DECODE_SECONDS = 100  # what a batch size of decoding may take, most of it compiling
NOT_INSTALLED, NO_TIME = "not installed", "skipped: out of time"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured and where; repeat: calls that are timed as one."""

    shape: Shape
    device: str
    batches: tuple[int, ...]
    prompt: int
    new: int
    tokens: tuple[int, ...]
    more_tokens: int
    response: int
    pairs: int
    sequence: int
    rounds: int
    repeat: int


LARGE = Job(
    shape=SHAPES[0],
    device="cuda",
    batches=(1, 8, 64),
    prompt=128,
    new=128,
    tokens=(2048, 8192),
    more_tokens=32768,
    response=128,
    pairs=32,
    sequence=512,
    rounds=5,
    repeat=5,
)
TINY = Shape(name="tiny", hidden=32, layers=2, heads=4, kv_heads=4, intermediate=48, vocab=96)
SMALL = Job(
    shape=TINY,
    device="cpu",
    batches=(1, 2),
    prompt=4,
    new=3,
    tokens=(16, 32),
    more_tokens=64,
    response=4,
    pairs=2,
    sequence=64,
    rounds=1,
    repeat=1,
)


def language_model(shape: Shape, device: str) -> LlamaForCausalLM:
    """A random Llama in bf16, without a token that ends a reply."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        pad_token_id=job.PAD,
        dtype=torch.bfloat16,
    )
    config.eos_token_id = None
    with torch.device(device):
        return LlamaForCausalLM._from_config(config).eval()


def timed(
    work: Job, sides: dict[str, Callable[[], Any]], *, repeat: int = 1
) -> tuple[dict[str, measure.Timing], dict[str, str]]:
    """`compare` with a clock that waits for the device, of `repeat` calls each; and why other sides failed."""

    def clock() -> float:
        if work.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def repeated(side: Callable[[], Any]) -> None:
        for _ in range(repeat):
            side()

    failed: dict[str, str] = {}
    for name, side in sides.items():
        try:
            side()  # whatever compiles does so here
        except Exception as error:  # a compiler's or somebody's kernel's, of any kind; the others are worth measuring
            failed[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    calls = {name: functools.partial(repeated, side) for name, side in sides.items() if name not in failed}
    reference = next(iter(sides))  # without it there are no ratios
    return {} if reference in failed else compare(calls, runs=work.rounds, warmup=1, clock=clock), failed


def spread(timing: measure.Timing) -> str:
    """The smallest and the largest ratio, as a cell."""
    return f"{timing.spread[0]:.3f} to {timing.spread[1]:.3f}"


# ---- reductions ------------------------------------------------------------------------------------------


def reductions(work: Job, lm: LlamaForCausalLM) -> Section:
    """Forward and backward of the losses at response tokens, against fused losses and three bare products."""
    loss, base, weight = head_loss(lm), lm.lm_head.weight.detach(), lm.lm_head.weight.detach().clone()
    difference = weight.requires_grad_()
    rows: list[tuple[Cell, ...]] = []
    for tokens in work.tokens:
        said = Responses.of(work.shape, tokens, work.response, work.device)
        others = fused_sides(said, base, difference)
        losses: dict[str, Side | None] = {
            "library, Dual-Head": library_side(loss, said),
            "plain autograd, Dual-Head": plain_side(said, base, difference),
            **others,
        }
        steps = {name: with_gradient(side, loss, difference) for name, side in losses.items() if side is not None}
        sides = {"three products": products(said, base, difference.detach()), **steps}
        timings, failed = timed(work, sides, repeat=work.repeat)
        for name, timing in timings.items():
            rows.append((tokens, name, timing.median / work.repeat * 1e3, f"{timing.ratio:.2f}", spread(timing)))
        left = failed | {name: NOT_INSTALLED for name, side in others.items() if side is None}
        rows += [(tokens, name, why, None, None) for name, why in left.items()]
    return Section(
        name="gpu-reductions",
        columns=("response tokens", "side", "ms", "x three products", "spread"),
        rows=tuple(rows),
        note="Forward and backward, weights in bf16. The fused losses of others have one term and one matrix.",
        bound="three bare products, z_LM, z_RM and dW_RM, which include one sum over [n, V].",
    )


def memory(work: Job, lm: LlamaForCausalLM) -> Section:
    """How much the losses and their gradient take beside weights and hidden states, by the tokens of a batch."""
    loss, rows, base = head_loss(lm), [], lm.lm_head.weight.detach()
    difference = base.clone().requires_grad_()
    for tokens in (*work.tokens, work.more_tokens):
        said = Responses.of(work.shape, tokens, work.response, work.device)
        own = _peak(work, with_gradient(library_side(loss, said), loss))
        plain = with_gradient(plain_side(said, base, difference), difference)
        rows.append((tokens, own, _peak(work, plain) if tokens in work.tokens else None))
    return Section(
        name="gpu-memory",
        columns=("response tokens", "library, MiB", "plain autograd, MiB"),
        rows=tuple(rows),
        note="Peak of the device's allocations over what was there before the step; one gradient of the head is in it.",
    )


def _peak(work: Job, run: Callable[[], Any]) -> float:
    """MiB over what is there before; the second call's, so that nothing compiles in it."""
    run()
    if work.device == "cpu":
        return peak_memory(run).over
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MB


# ---- training --------------------------------------------------------------------------------------------


def training(work: Job, lm: LlamaForCausalLM) -> Section:
    """Whole steps of Dual-Head with Adam: from hidden states that are there, and through the backbone."""
    chosen, shape = method("dual_head"), work.shape
    model = AlignedModel.from_backbone(lm, {"dual_head": chosen.guide})
    model.guides.float()
    loss = GuidedLoss(model, chosen, guide="dual_head")
    loss.looking = False
    optimizer = torch.optim.AdamW(model.guides.parameters(), lr=1e-5, fused=True)
    rows = job.pairs("hh", work.pairs, vocab_size=shape.vocab, sequence=work.sequence)
    streamed = {**PairCollator(job.PAD, share_prompt=True)(rows)}
    batches = {"cached": FeatureCollator("all")([_kept(row, shape) for row in rows]), "streamed": streamed}
    batches = {name: _moved(batch, work.device) for name, batch in batches.items()}

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast(work.device, torch.bfloat16):
            out = loss(**batch)["loss"]
        out.backward()
        optimizer.step()
        optimizer.zero_grad()

    sides = {name: functools.partial(step, batch) for name, batch in batches.items()}
    timings, failed = timed(work, sides, repeat=work.repeat)
    tokens, scored = sum(len(ids) for row in rows for ids in row.values()), sum(streamed["counts"])
    data = Data(prompt=(tokens - scored) // work.pairs, response=scored // (2 * work.pairs))
    flops = {"cached": scale.step_flops(shape, FULL, data)}
    flops["streamed"] = flops["cached"] + scale.forward_flops(shape, data)
    cells: list[tuple[Cell, ...]] = [(name, why, None, None, None, None) for name, why in failed.items()]
    for name, timing in timings.items():
        seconds = timing.median / work.repeat
        rate = work.pairs * flops[name] / seconds / scale.TERA
        cells.append((name, seconds * 1e3, work.pairs / seconds, tokens / seconds, rate, spread(timing)))
    return Section(
        name="gpu-training",
        columns=("hidden states", "ms a step", "pairs/s", "tokens/s", "TFLOP/s", "x cached, spread"),
        rows=tuple(cells),
        note=f"{work.pairs} pairs of real lengths, {tokens:,} tokens with prompts once, {scored:,} of responses; "
        "autocast in bf16, the guide and Adam in fp32. Cached hidden states are on the device already.",
    )


def _kept(row: job.Row, shape: Shape) -> dict[str, Any]:
    """A pair as a feature cache gives it, with random hidden states."""
    ids = torch.tensor([token for name in job.COLUMNS for token in row[name]])
    lengths = torch.tensor([len(row[name]) for name in job.COLUMNS])
    hidden = torch.randn(len(ids), shape.hidden, dtype=torch.bfloat16)
    return {"hidden": hidden, "layers": {}, "ids": ids, "lengths": lengths}


def _moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}


# ---- decoding --------------------------------------------------------------------------------------------


def decoding(work: Job, lm: LlamaForCausalLM, time_left: Callable[[], float]) -> Section:
    """Greedy generation with a static cache, compiled where there is a GPU, beside plain generation."""
    guides = {"merged": LinearConfig(init_std=0.01), HIDDEN: HiddenConfig(), FULL: RewardHeadConfig()}
    models: dict[str, Any] = {"none": lm}
    for name, config in guides.items():
        model = AlignedModel.from_backbone(lm, {"guide": config})
        model.guides.to(torch.bfloat16)
        models[name] = merge(model) if name == "merged" else model
    rows: list[tuple[Cell, ...]] = []
    for batch in work.batches:
        if time_left() < DECODE_SECONDS:
            rows.append((batch, NO_TIME, None, None, None, None))
            continue
        torch.compiler.reset()  # each size is compiled for itself, none as one of many
        ids = job.prompts(batch, work.prompt, vocab_size=work.shape.vocab).to(work.device)
        sides = {name: functools.partial(_generate, model, ids, work.new) for name, model in models.items()}
        timings, failed = timed(work, sides)
        rows += [(batch, name, why, None, None, None) for name, why in failed.items()]
        for name, timing in timings.items():
            bound = f"{byte_bound(work, name, batch):.4f}"
            each = timing.median / work.new * 1e3
            rows.append((batch, name, each, f"{timing.ratio:.3f}", spread(timing), bound))
    return Section(
        name="gpu-decode",
        columns=("batch", "guide", "ms a token", "x none", "spread", "bound by bytes"),
        rows=tuple(rows),
        note=f"Prompt {work.prompt}, {work.new} new tokens, the prompt's forward in the time; guides in bf16.",
        bound="weights, keys and values read for a token with the guide, to those without.",
    )


def _generate(model: Any, ids: Tensor, new: int) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "cache_implementation": "static"}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def byte_bound(work: Job, guide: str, batch: int) -> float:
    """Bytes read for one token of every row with a guide, to those without; a static cache is read whole."""
    shape, seen = work.shape, batch * (work.prompt + work.new)
    plain = scale.BF16 * (shape.decoder + shape.head) + seen * scale.kv_bytes(shape)
    own = scale.BF16 * scale.GUIDES[guide](shape) if guide in scale.GUIDES else 0
    gate = seen * 2 * scale.BF16 * scale.GATE_WIDTH if guide == FULL else 0
    return (plain + own + gate) / plain


# ---- all of it -------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """The machine, with the GPU before its processor."""
    here = measure.machine().as_dict()
    if device != "cpu":
        here["cpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {here['cpu']}"
        here["versions"] |= {name: measure._version(name) for name in ("triton", "liger_kernel", "cut-cross-entropy")}
    return here


def measured(work: Job) -> Iterator[Section]:
    """Every section, as soon as it is there."""
    started = time.monotonic()
    torch.manual_seed(0)
    lm = language_model(work.shape, work.device)
    yield reductions(work, lm)
    yield memory(work, lm)
    yield training(work, lm)
    yield decoding(work, lm, lambda: SECONDS - (time.monotonic() - started))


def main() -> None:
    """Measure, keep, and write the page's sections where they are results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU; its figures are no results")
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS.relative_to(RESULTS.parents[2])}")
    args = parser.parse_args()
    if args.small and args.output is None:
        parser.error("--small gives no results to keep beside others: say where with --output")
    if not args.small and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small tries the script on the CPU")
    work, output = SMALL if args.small else LARGE, args.output or RESULTS
    for section in measured(work):
        collect(section, machine(work.device), output)
        print(f"{section.name}: {len(section.rows)} rows in {output}")
    if not args.small:
        fill(PAGE, output)


if __name__ == "__main__":
    main()
