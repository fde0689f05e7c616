"""What the pages of the engine take and save: memory of a concurrent request, prefixes that requests share, and keys of
other requests that are left out."""

import asyncio
import statistics
import time
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from measure import MB, peak_memory
from serve_loads import GUIDES, PAGE, STEP, arrival_times, prompts, real_model, requests, sizes

from dual_head import AlignedModel
from dual_head.serve.engine import Engine
from dual_head.serve.paged import PagedModel
from dual_head.serve.pages import Pages
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest

LONG, SHORT = 7 * PAGE // 2, PAGE // 2  # tokens of a prompt and of a reply: 4 pages together
FEW, MANY, REPEATS = 4, 16, 2  # requests at once, whose prompts fill a step, and how often each is measured
SPARE = 8  # pages that a new request wants to see free
SYSTEM, OWN, CHATS = 448, 32, 6  # tokens that prompts share, and of each; requests
CROWDS, CROWD_PROMPT, CROWD_REPLY = (16, 64), 64, 32  # requests at once, tokens of a prompt and of a reply
LOOKING_BACK = ("no guide", "reward head with a gate")


def memory() -> list[list[Any]]:
    """Rows: guides, tokens, bytes of a token in pages and masks, MiB of a request by these and as measured."""
    lm, tokenizer = real_model()
    rows = []
    for name in LOOKING_BACK:
        model = AlignedModel.from_backbone(lm, GUIDES[name])
        # The least of several: an allocator may keep more than it needs, and never less.
        few, many = (min(_memory_over(model, tokenizer, load) for _ in range(REPEATS)) for load in (FEW, MANY))
        pages = PagedModel(model, lambda step: step.logits).bytes_per_token()
        masks = 2 * STEP * model.dtype.itemsize
        tokens = LONG + SHORT
        rows.append([name, tokens, pages, masks, tokens * (pages + masks) / MB, (many - few) / (MANY - FEW)])
    return rows


def _memory_over(model: AlignedModel, tokenizer: Any, load: int) -> float:
    """MiB that an engine with pages for these requests takes at its peak."""
    batch = requests(model, prompts(load, 0, model.backbone.shape.vocab_size, LONG), SHORT)
    pages = SPARE + load * (LONG + SHORT) // PAGE
    settings = EngineSettings(page_size=PAGE, num_blocks=pages, max_batch_tokens=STEP, max_rows=MANY)

    def run() -> None:
        with Engine(model, tokenizer, settings) as engine:
            engine.generate(batch)

    return peak_memory(run).over


def prefixes(lm: Any, tokenizer: Any) -> list[list[Any]]:
    """Rows: guides, the share of prompt tokens that pages held, and ms to first tokens with and without."""
    rows = []
    for name in ("one hidden guide", "reward head with a gate"):
        model = AlignedModel.from_backbone(lm, GUIDES[name])
        alone = prompts(CHATS, 1, model.backbone.shape.vocab_size, SYSTEM + OWN)
        shared = [alone[0][:SYSTEM] + ids[SYSTEM:] for ids in alone]
        figures = []
        for token_ids in (alone, shared):
            with Engine(model, tokenizer, sizes(CHATS, SYSTEM + OWN)) as engine:
                waits = [_first_wait(engine, request) for request in requests(model, token_ids, 2)]
                stats = engine.stats()
            figures.append((statistics.median(waits[1:]), stats.prefix_hit_tokens / stats.prompt_tokens))
        (without, none), (with_, share) = figures
        rows.append([name, CHATS, none, share, 1000 * without, 1000 * with_, without / with_])
    return rows


def attention(rounds: int) -> list[list[Any]]:
    """Rows: precision, requests at once, s with keys of a request's own and with those of all, x faster, quartiles."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        lm, tokenizer = real_model(dtype)
        model = AlignedModel.from_backbone(lm, GUIDES["one hidden guide"])
        for load in CROWDS:
            settings = EngineSettings(max_rows=load, max_batch_tokens=STEP, context_length=CROWD_PROMPT + CROWD_REPLY)
            by_request, under_mask = [], []
            for round_ in range(rounds + 1):
                token_ids = prompts(load, round_, model.backbone.shape.vocab_size, CROWD_PROMPT)
                for seconds, entered in ((by_request, Pages.attention), (under_mask, lambda _: nullcontext())):
                    with patch.object(Pages, "attention", entered), Engine(model, tokenizer, settings) as engine:
                        start = time.perf_counter()
                        engine.generate(requests(model, token_ids, CROWD_REPLY))
                        seconds.append(time.perf_counter() - start)
            by_request, under_mask = by_request[1:], under_mask[1:]  # the first round warms up
            low, middle, high = statistics.quantiles([b / a for a, b in zip(by_request, under_mask, strict=True)], n=4)
            name = str(dtype).removeprefix("torch.")
            rows.append([name, load, statistics.median(by_request), statistics.median(under_mask), middle, low, high])
    return rows


def _first_wait(engine: Engine, request: GenerationRequest) -> float:
    sent, first, _ = asyncio.run(arrival_times(engine, request))
    return first - sent
