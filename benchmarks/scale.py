"""What large backbones would take: bytes, FLOPs and lower bounds of times, computed from shapes and never measured.

    python benchmarks/scale.py                   # writes the tables of docs/explanation/scale.md again
    python benchmarks/scale.py --flops 400e12    # on other hardware: prints them, and leaves the page alone

The formulas are those of docs/explanation/scale.md, in its order. It knows no model, no guide's code and no clock.
A test holds its counts to those of the library.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from report import Section, cell, replaced

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "scale.md"
GB, TERA = 1e9, 1e12

BF16, FP32 = 2, 4
ADAM = 4 * FP32  # a weight, its gradient and two moments
ADAM_TRAFFIC = 7 * FP32  # all four read, all but the gradient written
ID, SCALE = 4, 4  # bytes of a token id, and of the scale of a row in int8
RANK, GATE_HEADS = 64, 8
GATE_WIDTH = GATE_HEADS * 48
PAGED_GATE_HEAD = 64  # the next width that attention on every device has
DPO = ADAM + BF16  # full fine-tuning, and the frozen reference

# ---- shapes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama: d, layers, heads of queries and of keys, width of the MLP, V; the lm_head is not tied."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    @property
    def head(self) -> int:
        """Parameters of the lm_head, V d."""
        return self.vocab * self.hidden

    @property
    def kv_width(self) -> int:
        """Keys of one token in one layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def decoder(self) -> int:
        """Parameters that every token passes besides the lm_head: projections, MLPs and norms."""
        d = self.hidden
        layer = 2 * d * d + 2 * d * self.kv_width + 3 * d * self.intermediate + 2 * d
        return self.layers * layer + d

    @property
    def parameters(self) -> int:
        """All of them, the embedding included."""
        return self.decoder + 2 * self.head

    @property
    def gate(self) -> int:
        """Parameters of the attention gate."""
        return 3 * self.hidden * GATE_WIDTH + GATE_WIDTH + 1


SHAPES = (
    Shape(name="Llama-2-7B", hidden=4096, layers=32, heads=32, kv_heads=32, intermediate=11008, vocab=32000),
    Shape(name="Llama-2-13B", hidden=5120, layers=40, heads=40, kv_heads=40, intermediate=13824, vocab=32000),
    Shape(name="Llama-2-70B", hidden=8192, layers=80, heads=64, kv_heads=8, intermediate=28672, vocab=32000),
    Shape(name="Llama-3-8B", hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256),
)

FULL, LOW, HIDDEN, GATED = "full + gate", f"rank {RANK} + gate", f"hidden {RANK}", f"hidden {RANK} + gate"
GUIDES: dict[str, Callable[[Shape], int]] = {
    FULL: lambda x: x.head + x.gate,
    LOW: lambda x: RANK * (x.vocab + x.hidden) + x.gate,
    HIDDEN: lambda x: 2 * RANK * x.hidden,
    GATED: lambda x: 2 * RANK * x.hidden + x.gate,
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Preference pairs: how many, average tokens of a prompt and of each response, and what a naive batch pads to."""

    pairs: int = 161_000
    prompt: int = 135
    response: int = 60
    padded: int = 512

    @property
    def scored(self) -> int:
        """Response tokens of a pair."""
        return 2 * self.response

    @property
    def shared(self) -> int:
        """Tokens of a pair whose prompt is there once."""
        return self.prompt + self.scored


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One GPU and its links, in bytes (of memory; per second) and FLOP per second; batch: pairs of one GPU's step."""

    flops: float = 790e12
    memory: float = 80e9
    bandwidth: float = 3.35e12
    link: float = 450e9  # to the other GPUs of its node
    network: float = 50e9  # to other nodes
    storage: float = 3e9
    node: int = 8
    batch: int = 32
    usable: float = 0.9  # of the memory


# ---- memory ----------------------------------------------------------------------------------------------


def state_bytes(shape: Shape, guide: str) -> int:
    """The frozen lm_head in bf16, and the guide as Adam holds it in fp32."""
    return BF16 * shape.head + ADAM * GUIDES[guide](shape)


def logits_bytes(shape: Shape) -> int:
    """Logits of a chunk, as --logits_budget_mb has them where it is not given."""
    return max(128 * 2**20, 7 * shape.head)


def peak_bytes(shape: Shape, guide: str) -> int:
    """The state in the middle of a step: the guide in bf16 beside it, and the logits of a chunk."""
    return state_bytes(shape, guide) + BF16 * GUIDES[guide](shape) + logits_bytes(shape)


def cache_bytes(shape: Shape, data: Data, *, positions: str, dtype: str) -> int:
    """All rows of a feature cache: a token's id and its hidden state, with its scale where it is int8."""
    row = ID + (BF16 * shape.hidden if dtype == "bf16" else shape.hidden + SCALE)
    return data.pairs * (data.shared if positions == "all" else data.scored) * row


def kv_bytes(shape: Shape) -> int:
    """Keys and values of a token in the backbone."""
    return 2 * BF16 * shape.layers * shape.kv_width


# ---- FLOPs of one pair -----------------------------------------------------------------------------------


def paged_bytes(shape: Shape, gpus: int) -> tuple[int, int]:
    """Bytes of a token in vLLM's pages on one GPU, in bf16: of the backbone, and of a gate, whose heads are padded."""
    backbone = 2 * BF16 * shape.layers * max(1, shape.kv_heads // gpus) * (shape.hidden // shape.heads)
    return backbone, 2 * BF16 * math.ceil(GATE_HEADS / gpus) * PAGED_GATE_HEAD


def naive_flops(shape: Shape, data: Data) -> float:
    """Both padded sequences through the backbone, and three vocabulary products at every position."""
    return 2 * data.padded * (2 * shape.decoder + 6 * shape.head)


def step_flops(shape: Shape, guide: str, data: Data) -> float:
    """The losses and their gradient, of hidden states that are there."""
    product, d, v = 2 * shape.head, shape.hidden, shape.vocab
    token = {
        FULL: 3 * product,
        LOW: product + 6 * RANK * v + 4 * RANK * d,
        HIDDEN: 3 * product + 10 * RANK * d,
        GATED: 3 * product + 10 * RANK * d,
    }[guide]
    gate = 4 * shape.gate * data.shared if guide != HIDDEN else 0  # no gradient goes on to h
    return token * data.scored + gate


def forward_flops(shape: Shape, data: Data) -> float:
    """The backbone without its lm_head, on a pair whose prompt is there once."""
    return 2 * shape.decoder * data.shared


# ---- times -----------------------------------------------------------------------------------------------


def fits(shape: Shape, guide: str, hardware: Hardware) -> bool:
    """Whether the whole backbone is on every GPU beside the guide's training."""
    return BF16 * shape.parameters + peak_bytes(shape, guide) <= hardware.usable * hardware.memory


def step_seconds(
    shape: Shape, guide: str, source: str, gpus: int, data: Data, hardware: Hardware
) -> dict[str, float] | None:
    """Lower bounds of a step's parts, by what bounds them; None where the backbone does not fit.

    source: "cache" (int8) or "stream". Reading may overlap with all else; compute, the exchange of gradients and Adam
    come one after the other, as all gradients are ready at once.
    """
    flops, read = step_flops(shape, guide, data), 0.0
    if source == "cache":
        positions = "response" if guide == HIDDEN else "all"
        one = cache_bytes(shape, data, positions=positions, dtype="int8") / data.pairs
        read = hardware.batch * one / hardware.storage
    else:
        flops += forward_flops(shape, data)
        if not fits(shape, guide, hardware):
            if gpus < hardware.node:
                return None
            read = BF16 * shape.parameters / hardware.link  # FSDP gathers every layer once a step
    compute = hardware.batch * flops / hardware.flops
    adam = ADAM_TRAFFIC * GUIDES[guide](shape) / hardware.bandwidth
    wire = hardware.link if gpus <= hardware.node else hardware.network
    exchange = 2 * (gpus - 1) / gpus * FP32 * GUIDES[guide](shape) / wire
    own = {"compute": compute, "Adam": adam, "exchange": exchange}
    return own if sum(own.values()) >= read else {"storage" if source == "cache" else "gathering": read}


def epoch(shape: Shape, guide: str, source: str, gpus: int, data: Data, hardware: Hardware) -> str:
    """An epoch's lower bound, and the largest part of it."""
    parts = step_seconds(shape, guide, source, gpus, data, hardware)
    if parts is None:
        return "does not fit"
    steps = math.ceil(data.pairs / (gpus * hardware.batch))
    return f"{_time(steps * sum(parts.values()))}, {max(parts, key=lambda name: parts[name])}"


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


# ---- decoding --------------------------------------------------------------------------------------------


def decode_ratio(shape: Shape, guide: str) -> float:
    """Weights read per token with the guide to those without, in the same dtype."""
    backbone = shape.decoder + shape.head
    return (backbone + GUIDES[guide](shape)) / backbone


# ---- tables ----------------------------------------------------------------------------------------------


def sections(data: Data, hardware: Hardware) -> list[Section]:
    """Every table of the page."""
    return [_state(), _cache(data), _flops(data), _times(data, hardware), _decode(), _where(hardware), _vllm(hardware)]


def _state() -> Section:
    rows = [
        (shape.name, guide, count(shape), state_bytes(shape, guide) / GB, peak_bytes(shape, guide) / GB)
        for shape in SHAPES
        for guide, count in GUIDES.items()
    ]
    columns = ("backbone", "guide", "parameters trained", "state, GB", "in a step, GB")
    return Section(name="scale-state", columns=columns, rows=tuple(rows))


def _cache(data: Data) -> Section:
    kinds = [(positions, dtype) for positions in ("all", "response") for dtype in ("bf16", "int8")]
    rows = [
        (
            shape.name,
            BF16 * shape.vocab * data.shared * data.pairs / GB,
            *(cache_bytes(shape, data, positions=x, dtype=dtype) / GB for x, dtype in kinds),
        )
        for shape in SHAPES
    ]
    named = [f"{'all positions' if x == 'all' else 'responses'}, {dtype}" for x, dtype in kinds]
    return Section(name="scale-cache", columns=("GB", "logits, for contrast", *named), rows=tuple(rows))


def _flops(data: Data) -> Section:
    rows = []
    for shape in SHAPES:
        naive, forward = naive_flops(shape, data), forward_flops(shape, data)
        steps = [step_flops(shape, guide, data) for guide in (FULL, LOW, HIDDEN)]
        rows.append(
            (
                shape.name,
                naive / TERA,
                (forward + steps[0]) / TERA,
                *(x / TERA for x in steps),
                f"{naive / (forward + steps[0]):.1f}",
                f"{naive / steps[0]:.0f}",
            )
        )
    columns = ("TFLOP a pair", "naive", "streamed, full", f"cached, {FULL}", f"cached, {LOW}", f"cached, {HIDDEN}")
    ratios = ("naive / streamed", "naive / cached")
    return Section(name="scale-flops", columns=(*columns, *ratios), rows=tuple(rows))


def _times(data: Data, hardware: Hardware) -> Section:
    counts = (1, hardware.node, 8 * hardware.node)
    rows = [
        (shape.name, guide, source, *(epoch(shape, guide, source, gpus, data, hardware) for gpus in counts))
        for shape in SHAPES
        for guide, source in ((FULL, "stream"), (FULL, "cache"), (HIDDEN, "cache"))
    ]
    named = [f"{count} GPU{'s' if count > 1 else ''}" for count in counts]
    return Section(name="scale-times", columns=("backbone", "guide", "input", *named), rows=tuple(rows))


def _decode() -> Section:
    rows = []
    for shape in SHAPES:
        cached = 2 * BF16 * GATE_WIDTH
        ratios = [f"{decode_ratio(shape, guide):.4f}" for guide in GUIDES]
        rows.append((shape.name, *ratios, "1", f"{cached:,} of {kv_bytes(shape):,} ({cached / kv_bytes(shape):.1%})"))
    columns = ("backbone", *GUIDES, "merged", "gate's keys and values, bytes a token")
    return Section(name="scale-decode", columns=columns, rows=tuple(rows))


def _where(hardware: Hardware) -> Section:
    def needs(amount: float) -> str:
        gpus = math.ceil(amount / (hardware.usable * hardware.memory))
        return f"{cell(amount / GB)} GB: {gpus}"

    rows = []
    for shape in SHAPES:
        backbone = BF16 * shape.parameters
        decoding = backbone + BF16 * GUIDES[FULL](shape) + 4096 * (kv_bytes(shape) + 2 * BF16 * GATE_WIDTH)
        jobs = (peak_bytes(shape, FULL), backbone, backbone + peak_bytes(shape, FULL), decoding, DPO * shape.parameters)
        rows.append((shape.name, *map(needs, jobs)))
    columns = ("GB: GPUs", "train from a cache", "write the cache", "train, streaming", "decode", "DPO of every weight")
    return Section(name="scale-where", columns=columns, rows=tuple(rows))


def _vllm(hardware: Hardware) -> Section:
    rows = []
    for shape in SHAPES:
        for gpus in (1, 2, 8):
            weights = BF16 * shape.parameters / gpus
            guides = FP32 * (shape.head + shape.gate) / gpus
            room = 0.9 * hardware.memory - weights - guides
            backbone, gate = paged_bytes(shape, gpus)
            tokens = f"{room / (backbone + gate):,.0f}" if room > 0 else "does not fit"
            pages = f"{backbone:,} + {gate:,} ({gate / backbone:.1%})"
            hidden = FP32 * 2 * RANK * shape.hidden
            rows.append((shape.name, gpus, weights / GB, guides / GB, hidden / GB, pages, tokens))
    parts = ("weights", FULL, HIDDEN)
    columns = ("backbone", "GPUs", *(f"{x}, GB" for x in parts), "bytes a token: backbone + gate", "tokens in pages")
    return Section(name="scale-vllm", columns=columns, rows=tuple(rows))


def tables(data: Data | None = None, hardware: Hardware | None = None) -> dict[str, str]:
    """Every table in Markdown, by the name of its markers."""
    return {x.name: _markdown(x) for x in sections(data or Data(), hardware or Hardware())}


def _markdown(section: Section) -> str:
    """A table without the machine that a measured one names."""
    lines = [section.columns, ["---"] * len(section.columns), *([cell(x) for x in row] for row in section.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write the page, or print the tables of other hardware."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in (*fields(Data), *fields(Hardware)):
        parser.add_argument(f"--{f.name}", type=type(f.default))
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    data = Data(**{f.name: given[f.name] for f in fields(Data) if f.name in given})
    hardware = Hardware(**{f.name: given[f.name] for f in fields(Hardware) if f.name in given})
    if given:
        print(*tables(data, hardware).values(), sep="\n\n")
    else:
        PAGE.write_text(replaced(PAGE.read_text(), tables()))


if __name__ == "__main__":
    main()
