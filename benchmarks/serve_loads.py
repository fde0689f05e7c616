"""Loads on the engine in this process: the sides that meet at a load, what a turn of each takes, and its figures.

It knows engines and prompts, and neither processes nor tables.
"""

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from job import VOCAB, language_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from dual_head import AlignedModel, HiddenConfig, LinearConfig, RewardHeadConfig
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Sampling

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("DUAL_HEAD_REAL", ROOT / ".venv" / "real" / "smollm2"))
PROMPT, NEW = 48, 24  # tokens
PAGE, STEP, ROWS = 32, 256, 16  # tokens of a page and of a step, and rows of one
ONE_BY_ONE_PROMPTS = 2  # in a turn of one by one, where no load changes what a prompt takes
GUIDES: dict[str, dict[str, Any]] = {
    "no guide": {},
    "one hidden guide": {"a": HiddenConfig(init_std=0.02)},
    "four hidden guides": {name: HiddenConfig(init_std=0.02) for name in "abcd"},
    "linear guide": {"a": LinearConfig(init_std=0.01)},
    "reward head with a gate": {"a": RewardHeadConfig(init_std=0.01)},
}
REFERENCE = "no guide"
HIDDEN, VOCABULARY = ("one hidden guide", "four hidden guides"), ("linear guide", "reward head with a gate")
TRANSFORMERS, ONE_BY_ONE = "no guide, transformers' own batching", "one hidden guide, one by one"


@dataclass
class Run:
    """Seconds of one turn: of the processor and of the clock, to first tokens, and between tokens."""

    cpu: float
    wall: float
    tokens: int
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, times: Sequence[float]) -> None:
        """Take the times of one request: when it was sent, and when each token came."""
        waits = [after - before for before, after in pairwise(times)]
        self.first.append(waits[0])
        self.between += waits[1:]


Side = Callable[[int, int], Run]  # of a load and a round
Runs = dict[str, list[Run]]  # of every side


def real_model(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The chat model of `make real`, which ends at no token, and its tokenizer."""
    lm = AutoModelForCausalLM.from_pretrained(REAL, dtype=dtype).eval()
    lm.generation_config.eos_token_id = None
    return lm, AutoTokenizer.from_pretrained(REAL)


def reference_model() -> tuple[Any, Any]:
    """The random Llama of the reference job, and a tokenizer of as many words."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    lm = language_model()
    lm.generation_config.eos_token_id = None
    return lm, PreTrainedTokenizerFast(tokenizer_object=words)


# ---- sides -----------------------------------------------------------------------------------------------


def sizes(clients: int, tokens: int = PROMPT + NEW) -> EngineSettings:
    """An engine with pages for so many requests of so many tokens."""
    return EngineSettings(
        page_size=PAGE, num_blocks=clients * (tokens // PAGE + 2) + 8, max_batch_tokens=STEP, max_rows=ROWS
    )


def sides(lm: Any, tokenizer: Any, most: int) -> dict[str, Side]:
    """Every side by its name, for loads of at most so many clients."""
    turns: dict[str, Side] = {}
    for name, guides in GUIDES.items():
        model = AlignedModel.from_backbone(lm, guides)
        turns[name] = _Streams(Engine(model, tokenizer, sizes(most)))
        if name == HIDDEN[0]:
            turns[ONE_BY_ONE] = _OneByOne(model)
    turns[TRANSFORMERS] = _Transformers(lm, most)
    turns[ONE_BY_ONE] = turns.pop(ONE_BY_ONE)  # the last row of the table
    return turns


def in_turns(turns: Mapping[str, Side], loads: Sequence[int], rounds: int) -> Iterator[tuple[int, Runs]]:
    """For each load the runs of every side; each round begins one side later, and one at the least load warms up."""
    names = list(turns)
    for name in names:
        turns[name](min(loads), 0)
    for load in loads:
        runs: Runs = {name: [] for name in names}
        for round_ in range(1, rounds + 1):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                runs[name].append(turns[name](load, round_))
        yield load, runs


def prompts(load: int, round_: int, vocabulary: int, length: int = PROMPT) -> list[list[int]]:
    """Prompts that no two rounds have in common, so that no page serves twice."""
    generator = torch.Generator().manual_seed(1000 * load + round_)
    return torch.randint(3, vocabulary, (load, length), generator=generator).tolist()


def strengths(names: Mapping[str, Any] | None, i: int) -> dict[str, float]:
    """Strengths of request i, another one for each guide."""
    return {name: 0.1 * (1 + i + j) for j, name in enumerate(names or {})}


def requests(model: AlignedModel, token_ids: Sequence[Sequence[int]], new: int = NEW) -> list[GenerationRequest]:
    """Greedy requests, each at strengths of its own."""
    names = model.config.guides
    return [
        GenerationRequest(ids, new, strengths(names, i), Sampling(temperature=0.0)) for i, ids in enumerate(token_ids)
    ]


async def arrival_times(engine: Engine, request: GenerationRequest) -> list[float]:
    """When a request was sent, and when each of its tokens came."""
    times = [time.perf_counter()]
    async for piece in engine.stream(request):
        times += [time.perf_counter()] * len(piece.tokens)
    return times


class _Streams:
    """Clients that stream from our engine, all at once."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def __call__(self, load: int, round_: int) -> Run:
        engine = self.engine
        batch = requests(engine.model, prompts(load, round_, engine.vocabulary))

        async def all_at_once() -> list[list[float]]:
            return await asyncio.gather(*[arrival_times(engine, request) for request in batch])

        with engine:
            cpu, wall = time.process_time(), time.perf_counter()
            times = asyncio.run(all_at_once())
            run = Run(time.process_time() - cpu, time.perf_counter() - wall, load * NEW)
        for each in times:
            run.add(each)
        return run


class _Transformers:
    """The plain backbone under transformers' own continuous batching, at the sizes of our engine."""

    def __init__(self, lm: Any, most: int):
        self.lm = lm
        self.sizes = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=sizes(most).num_blocks,
            max_batch_tokens=STEP,
            max_requests_per_batch=ROWS,
            auto_switch_to_flash=False,
        )

    def __call__(self, load: int, round_: int) -> Run:
        config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=-1)
        manager = self.lm.init_continuous_batching(config, continuous_batching_config=self.sizes)
        manager.warmup()
        manager.start()
        token_ids = prompts(load, round_, self.lm.config.vocab_size)
        cpu, wall = time.process_time(), time.perf_counter()
        times = {manager.add_request(ids, max_new_tokens=NEW, streaming=True): [wall] for ids in token_ids}
        left = load
        while left:
            output = manager.get_result(timeout=1)
            if output is not None:
                times[output.request_id].append(time.perf_counter())
                left -= output.is_finished()
        run = Run(time.process_time() - cpu, time.perf_counter() - wall, load * NEW)
        manager.stop(block=True)
        for each in times.values():
            run.add(each)
        return run


class _OneByOne:
    """The same requests, one after the other with `generate`."""

    def __init__(self, model: AlignedModel):
        self.model = model

    def __call__(self, load: int, round_: int) -> Run:
        count = min(load, ONE_BY_ONE_PROMPTS)
        vocabulary = self.model.backbone.config.vocab_size
        run = Run(0.0, 0.0, count * NEW)
        for i, ids in enumerate(prompts(load, round_, vocabulary)[:count]):
            streamer = _Times()
            cpu = time.process_time()
            self.model.generate(
                torch.tensor([ids]),
                alpha=strengths(self.model.config.guides, i),
                max_new_tokens=NEW,
                do_sample=False,
                streamer=streamer,
            )
            run.cpu += time.process_time() - cpu
            run.wall += time.perf_counter() - streamer.times[0]
            run.add(streamer.times)
        return run


class _Times:
    """A streamer that notes when it is told of the prompt, and of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Note the time."""
        del value
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing."""


# ---- figures ---------------------------------------------------------------------------------------------


def vocabulary_product(lm: Any, rows: int, repeats: int = 9) -> float:
    """Processor seconds of one more product [rows, d] x [d, V], as the backbone makes its logits, in a thread."""
    weight = lm.get_output_embeddings().weight.detach().clone()  # as cold as another matrix would be
    x = torch.randn(rows, weight.shape[1])
    seconds: list[float] = []

    def measure() -> None:  # in a thread, as the engine has its own
        for _ in range(repeats):
            started = time.process_time()
            F.linear(x, weight)
            seconds.append(time.process_time() - started)

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return statistics.median(seconds[2:])


def per_token(runs: Sequence[Run]) -> list[float | None]:
    """Tokens a second, processor ms a token, and ms to first tokens and between tokens: median, 95%."""
    first = [wait for run in runs for wait in run.first]
    between = [wait for run in runs for wait in run.between]
    return [
        statistics.median(run.tokens / run.wall for run in runs),
        statistics.median(1000 * run.cpu / run.tokens for run in runs),
        *(quantile(waits, share) for waits in (first, between) for share in (0.5, 0.95)),
    ]


def quantile(seconds: Sequence[float], share: float) -> float | None:
    """In ms, the time that a share of waits stays below; None where there was none."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def ratios(runs: Sequence[Run], reference: Sequence[Run]) -> list[float]:
    """The reference's processor time a token in the side's, of each round, the smallest first."""
    pairs = zip(runs, reference, strict=True)
    return sorted((other.cpu / other.tokens) / (run.cpu / run.tokens) for run, other in pairs)
