"""Decoding on this machine's processor: guides beside the backbone, and models as guides beside plain loops.

Part of cpu.py, which runs it. It knows which sides meet; how they decode is in peers.py and ours.py.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import ours
import peers
import report
import torch
from job import PROMPT, VOCAB, language_model, prompts, reward_model
from measure import KIND, Timing, compare, compare_tokens
from report import faster, interval, times_of
from transformers.generation.streamers import BaseStreamer

from dual_head import method
from dual_head.export.merge import merge

NEW = 32  # decoded tokens
TOKENS, TURNS = 64, {1: 7, 8: 3}  # of sides that take turns by the token; rounds for each batch


def guides(_runs: int) -> Iterator[report.Section]:
    """What a token takes whose guides need nothing but the backbone, beside the backbone's own generate."""
    lm, rows = language_model(), []
    lm.lm_head.requires_grad_(False)
    head, many = ours.full_head(lm), ours.hidden_guides(lm, 4)
    constant = method("iav").with_options({"guide.init_std": 0.01})
    merged = merge(ours.AlignedModel.from_backbone(lm, constant.guides()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for batch, rounds in TURNS.items():
        ids, second = prompts(batch, PROMPT), torch.zeros(VOCAB, lm.config.hidden_size)
        alphas = {f"objective_{i}": torch.linspace(0.1, 1, batch).tolist() for i in range(4)}
        plain, x = partial(peers.plain_generate, lm, ids, TOKENS), torch.ones(batch, lm.config.hidden_size)
        sides = {
            "the backbone's own generate": plain,
            "the same again": plain,
            "merged": partial(peers.plain_generate, merged, ids, TOKENS),
            "four hidden-space guides, alpha per row": ours.generation(many, ids, TOKENS, alpha=alphas),
            "reward head and gate": ours.generation(head, ids, TOKENS),
            "  bound: a second vocabulary product": lambda streamer, run=plain, x=x, second=second: run(
                streamer=BeforeEach(lambda: torch.mm(x, second.T), streamer)
            ),
        }
        times, firsts = compare_tokens(sides, runs=rounds)
        for side, time in times.items():
            rows.append((side, batch, time.median * 1000, interval(time), firsts[side] * 1000))
    torch.set_num_threads(threads)
    yield report.Section(
        name=f"guides{KIND}",
        columns=("a greedy token", "batch", "ms", "x the backbone", "ms until the first token"),
        rows=tuple(rows),
        note=f"{TOKENS} tokens after {PROMPT}, on one thread, sides taking turns by the token. Medians of all tokens "
        f"but the first of {' and '.join(map(str, TURNS.values()))} rounds; ratios of the same turn, with the 95% "
        "interval of their median, as if tokens did not depend on one another.",
        bound="what the backbone takes, and one more product with a matrix as large as its lm_head.",
    )


class BeforeEach(BaseStreamer):
    """A streamer that does something more for every token, prompts included, before it hands it on."""

    def __init__(self, more: Callable[[], Any], streamer: Any):
        self._more, self._streamer = more, streamer

    def put(self, value: Any) -> None:
        """Take a prompt or a token."""
        self._more()
        self._streamer.put(value)

    def end(self) -> None:
        """Hand on that it is over."""
        self._streamer.end()


def whole_models(runs: int) -> Iterator[report.Section]:
    """What generation takes whose guides are models themselves, beside plain loops over the same models."""
    lm, judge = language_model(), reward_model()
    lm.lm_head.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arm, args = ours.genarm(lm), ours.args(lm, judge, f"{folder}/judge", 10)
        for batch in (1, 8):
            ids = prompts(batch, PROMPT)
            sides = {
                "the backbone's own generate": partial(peers.plain_generate, lm, ids, NEW),
                "GenARM, shared weights": ours.generation(arm, ids, NEW),
                "  peer: two models in turn": partial(peers.genarm_two_models, lm, lm, ids, NEW, 1.0),
                "ARGS, 10 candidates": ours.generation(args, ids, NEW),
                "  peer: k forwards in turn": partial(peers.args_k_forwards, lm, judge, ids, NEW, 10, 1.0),
            }
            watches = {side: FirstToken(run) for side, run in sides.items()}
            times = compare({side: watch.run for side, watch in watches.items()}, runs=runs)
            after = {side: watches[side].after(time) for side, time in times.items()}
            yield report.Section(
                name=f"decoding-{batch}{KIND}",
                columns=(
                    f"{NEW} greedy tokens after {PROMPT}, batch {batch}",
                    "ms a token, prompt included",
                    "x the backbone",
                    "x faster than peer",
                    "ms a token after the first",
                    "x the backbone",
                    "x faster than peer",
                ),
                rows=tuple((side, *_decoded(side, times, NEW), *_decoded(side, after, NEW - 1)) for side in sides),
                note=f"Medians of {runs} rounds; ratios of the same round with their smallest and largest. The three "
                "columns on the right leave out the time until the first token, which is the prompt's.",
            )


class FirstToken(BaseStreamer):
    """Runs a side that streams what it generates, and notes when its first token is there."""

    def __init__(self, side: Callable[..., Any]):
        self._side = side
        self._puts: list[float] = []
        self._first: list[float] = []  # seconds until then, of every run

    def run(self) -> None:
        """Generate once."""
        self._puts = [perf_counter()]
        self._side(streamer=self)
        started, _, first, *_ = self._puts
        self._first.append(first - started)

    def put(self, value: Any) -> None:
        """Take the prompt, then tokens."""
        del value
        self._puts.append(perf_counter())

    def end(self) -> None:
        """Do nothing: what ends a generation is its last token."""

    def after(self, whole: Timing) -> Timing:
        """What the counted runs took from their first token on."""
        first = self._first[-len(whole.seconds) :]
        return Timing(tuple(a - b for a, b in zip(whole.seconds, first, strict=True)), ratios=())


def _decoded(side: str, times: Mapping[str, Timing], tokens: int) -> tuple[float, str, str]:
    time, backbone = times[side], next(iter(times.values()))
    return 1000 * time.median / tokens, times_of(time, backbone), _against(side, times)


def _against(side: str, times: Mapping[str, Timing]) -> str:
    peer = {"GenARM, shared weights": "  peer: two models in turn", "ARGS, 10 candidates": "  peer: k forwards in turn"}
    return faster(times[side], times[peer[side]]) if side in peer else ""
