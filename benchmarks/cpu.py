"""Every comparison on this machine's processor, as ratios of runs that took turns in one process.

    python benchmarks/cpu.py                       # all sections, about 26 minutes on two cores with AVX2
    python benchmarks/cpu.py training-hh decoding  # some of them; the others keep the figures they have

Figures go to benchmarks/results/cpu.json as soon as a section is through, and from there into docs/results/speed.md.
It knows which sides meet; how they do it is in peers.py and ours.py.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import decoding
import ours
import peers
import report
import torch
from job import PAD, PROMPT, SEQUENCE, TRIPLES, VOCAB, language_model, padded, pairs, prompts
from measure import BF16, KIND, Timing, begin_with_huge_pages, compare, machine, peak_memory
from report import faster, quarters, times_of

from dual_head import PairCollator, method
from dual_head.data.tokenize import pair_lengths
from dual_head.train.base import ByLength

RUNS = 5
NAIVE, TRL = "naive Dual-Head", "TRL DPO, LoRA, reference precomputed"
BATCH = 4
PRECISIONS = (False, True) if BF16 else (False,)  # whether products are in bf16


def main() -> None:
    """Measure, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all of them where none is named")
    parser.add_argument("--runs", type=int, default=RUNS, help="counted rounds of every comparison")
    parser.add_argument("--every_peer", action="store_true", help="TRL in every variant, six minutes more")
    parser.add_argument("--points", type=json.loads, help=argparse.SUPPRESS)  # in a process of their own
    args = parser.parse_args()
    begin_with_huge_pages()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.points:
        print(json.dumps([_point(**options) for options in args.points]))
        return
    for name in args.sections or SECTIONS:
        print(f"{name} ...", flush=True)
        more = {"every_peer": True} if args.every_peer and name == "training-full" else {}
        for section in SECTIONS[name](args.runs, **more):
            if isinstance(section, report.Section):
                report.collect(section, machine().as_dict())
                print(report.markdown(report.read()["sections"][section.name]), flush=True)
            else:
                report.collect_points([section], machine().as_dict())
    report.fill()
    report.draw(report.read()["points"])


# ---- training --------------------------------------------------------------------------------------------


def _training(kind: str, runs: int, *, every_peer: bool = False):
    lm = language_model()
    rows = typical(kind)
    scored = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    exact, half = (ours.Step(lm, rows, method("dual_head"), bf16=bf16) for bf16 in (False, True))
    heads = peers.NaiveHeads(lm.lm_head)
    optimizer, batch = torch.optim.AdamW(heads.parameters()), padded(rows)
    sides: dict[str, Callable[[], Any] | None] = {
        NAIVE: lambda: peers.naive_dual_head_step(lm, heads, batch, optimizer),
        TRL: peers.trl_dpo(lm, rows, lora=True, precomputed=True),
        "from kept hidden states, fp32": exact.cached(),
        "from kept hidden states, bf16 products": half.cached() if BF16 else None,
        "first epoch, backbone included, fp32": exact.streamed,
        "first epoch, backbone included, bf16": half.streamed,
        "three bare products, fp32": exact.bare,
        "three bare products, bf16": half.bare,
    }
    if every_peer:
        sides |= {
            "TRL DPO, LoRA": peers.trl_dpo(lm, rows, lora=True, precomputed=False),
            "TRL DPO, full, reference precomputed": peers.trl_dpo(lm, rows, lora=False, precomputed=True),
            "TRL DPO, full": peers.trl_dpo(lm, rows, lora=False, precomputed=False),
        }
    times = compare({name: run for name, run in sides.items() if run and (BF16 or "bf16" not in name)}, runs=runs)
    table = []
    for side, time in times.items():
        bare = times["three bare products, bf16" if "bf16" in side else "three bare products, fp32"]
        own = "hidden states" in side or "bare" in side
        table.append(
            (side, time.median * 1000, faster(time, times[NAIVE]), faster(time, times[TRL]))
            + ((times_of(time, bare),) if own else ("",))
        )
    tokens = f"{sum(len(row['prompt_ids']) for row in rows)} prompt tokens, {scored} response tokens"
    yield report.Section(
        name=f"training-{kind}{KIND}",
        columns=("one optimizer step on 4 pairs", "ms", "x faster than naive", "x faster than TRL", "x bare products"),
        rows=tuple(table),
        note=f"{tokens}; medians of {runs} rounds, ratios of the same round with their smallest and largest.",
        bound="the products W_LM h, D h and dz' h at the response tokens; ours includes gate, losses and AdamW.",
    )


def _steps(runs: int):
    lm, rounds, table = language_model(), 2 * runs + 1, []
    for kind, label in (("full", "512 tokens a sequence"), ("hh", "lengths of HH-RLHF")):
        rows = typical(kind)
        for bf16 in PRECISIONS:
            step = ours.Step(lm, rows, method("dual_head"), bf16=bf16)
            times = compare({"ours": step.cached(), "bare": step.bare}, runs=rounds)
            own, bare = times["ours"], times["bare"]
            kept = f"{label}, {'bf16 products' if bf16 else 'fp32'}"
            table.append((kept, own.median * 1000, bare.median * 1000, quarters(own, bare)))
    yield report.Section(
        name=f"steps{KIND}",
        columns=("one step from kept hidden states on 4 pairs", "ms", "three bare products, ms", "x bare products"),
        rows=tuple(table),
        note=f"Nothing but the two in turns, as training repeats its step; medians of {rounds} rounds, ratios of the "
        "same round with their quartiles.",
    )


def typical(kind: str) -> list[dict[str, list[int]]]:
    """Four pairs whose lengths add up to four times the average: of 500 draws, the closest."""
    draws = [pairs(kind, BATCH, seed) for seed in range(500 if kind == "hh" else 1)]  # type: ignore[arg-type]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    totals = torch.tensor([[sum(len(row[c]) for row in rows) for c in columns] for rows in draws]).float()
    return draws[int((totals - totals.mean(0)).div(totals.mean(0)).norm(dim=1).argmin())]


def _padding(_runs: int):
    rows, collate = pairs("hh", TRIPLES), PairCollator(PAD, share_prompt=True)
    lengths, table = pair_lengths(rows), []
    for like in (True, False):
        for size in (BATCH, 2 * BATCH, 4 * BATCH):
            order = list(ByLength(size, lengths=lengths, seed=0)) if like else torch.randperm(len(rows)).tolist()
            batches = [order[at : at + size] for at in range(0, len(order), size)]
            alone = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
            laid = sum(collate([rows[i] for i in batch])["parts"].numel() for batch in batches)
            shares = (f"{1 - sum(lengths) / slots:.1%}" for slots in (alone, laid))
            table.append(("like length" if like else "any length, at random", size, *shares))
    yield report.Section(
        name="padding",
        columns=(
            "batches of pairs of",
            "pairs in a batch",
            "padding, a row for each pair",
            "padding, as they are laid out",
        ),
        rows=tuple(table),
        note=f"Shares of all tokens, of {TRIPLES} pairs as long as those of HH-RLHF, prompts once for both responses.",
    )


# ---- memory, and how both grow ---------------------------------------------------------------------------


def _memory(_runs: int):
    rows, sizes = [], (SEQUENCE // 2, SEQUENCE, 2 * SEQUENCE)
    (naive,) = _measured([{"side": "naive"}])
    rows.append((NAIVE, SEQUENCE, naive["mb"], 1.0))
    for bf16 in PRECISIONS:
        points = _measured([{"side": "dual_head", "tokens": tokens, "bf16": bf16} for tokens in sizes])
        for tokens, point in zip(sizes, points, strict=True):
            label = f"from kept hidden states, {'bf16 products' if bf16 else 'fp32'}"
            rows.append((label, tokens, point["mb"], naive["mb"] / point["mb"]))
            for measure in ("ms", "mb"):
                yield _at(label, measure, "T", tokens, point)
    for measure in ("ms", "mb"):
        yield _at(NAIVE, measure, "T", SEQUENCE, naive)
    yield report.Section(
        name=f"memory{KIND}",
        columns=("one step on 4 pairs, half of each sequence prompt", "tokens of a sequence", "MiB", "x below naive"),
        rows=tuple(rows),
        note="Peak over what the process held before the step (weights, Adam's moments, hidden states), in a process "
        "of each side's own, after one step. The gradient of the heads, 65 MiB, is in it.",
    )


def _scaling(_runs: int):
    along = (
        ("V", "vocab", (8192, 32000, 128000), ("dual_head", "hidden")),
        ("rank", "rank", (16, 64, 256), ("iav", "hidden")),
    )
    for axis, option, sizes, sides in along:
        for side in sides:
            points = _measured([{"side": side, option: size} for size in sizes])
            for size, point in zip(sizes, points, strict=True):
                yield from (_at(LABELS[side], measure, axis, size, point) for measure in ("ms", "mb"))
    lm, ids = language_model(), prompts(1, PROMPT)
    models = {count: ours.hidden_guides(lm, count) for count in (1, 2, 4, 8)}
    times = compare({str(n): ours.generation(model, ids, decoding.NEW) for n, model in models.items()}, runs=RUNS)
    for count, time in times.items():
        point = _milliseconds(time, each=decoding.NEW)
        yield _at("hidden-space guides, a decoded token", "ms", "guides", int(count), point)


LABELS = {"dual_head": "Dual-Head, full", "hidden": "hidden-space", "iav": "full-width head of rank r (IAV)"}


def _at(side: str, measure: str, axis: str, at: int, point: Mapping[str, Any]) -> report.Point:
    spread = point.get(f"{measure}_spread", (point[measure],) * 2)
    return report.Point(side=side, measure=measure, axis=axis, at=at, median=point[measure], spread=tuple(spread))


def _measured(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Time and memory of one side at several sizes, in a process of its own."""
    command = [sys.executable, __file__, "--points", json.dumps(points)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def _point(
    *, side: str, tokens: int = SEQUENCE, vocab: int = VOCAB, rank: int | None = None, bf16: bool = False
) -> dict[str, Any]:
    lm = language_model(vocab_size=vocab)
    if side == "naive":
        heads = peers.NaiveHeads(lm.lm_head)
        optimizer, batch = torch.optim.AdamW(heads.parameters()), padded(pairs("full", BATCH))
        run: Callable[[], Any] = lambda: peers.naive_dual_head_step(lm, heads, batch, optimizer)  # noqa: E731
    else:
        chosen = method(side).with_options({} if rank is None else {"guide.rank": rank})
        rows = ours.rows_of(tokens, tokens // 2, BATCH, vocab_size=vocab)
        run = ours.Step(lm, rows, chosen, bf16=bf16).cached()
    run()
    memory = peak_memory(run)
    time = compare({side: run}, runs=1 if side == "naive" else 3, warmup=0)[side]  # of its time there are tables
    return {**_milliseconds(time), "mb": memory.over}


def _milliseconds(time: Timing, *, each: int = 1) -> dict[str, Any]:
    """Median and spread of a side's rounds, of `each` tokens or steps."""
    return {
        "ms": 1000 * time.median / each,
        "ms_spread": [1000 * seconds / each for seconds in (min(time.seconds), max(time.seconds))],
    }


SECTIONS: dict[str, Callable[[int], Any]] = {
    "padding": _padding,
    "steps": _steps,
    "training-full": partial(_training, "full"),
    "training-hh": partial(_training, "hh"),
    "memory": _memory,
    "guides": decoding.guides,
    "decoding": decoding.whole_models,
    "scaling": _scaling,
}

if __name__ == "__main__":
    main()
