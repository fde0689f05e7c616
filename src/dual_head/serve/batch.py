"""The running batch: transformers' manager over the pages of a model, its sizes, its thread, and what it has to say."""

from collections.abc import Callable, Sequence
from itertools import count
from math import ceil
from threading import Thread
from typing import Any
from weakref import WeakValueDictionary

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus, OutputRouter
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from dual_head.backbone.load import context_length
from dual_head.errors import DualHeadError
from dual_head.ops.workers import release_workers
from dual_head.serve.paged import PagedModel, Row
from dual_head.serve.settings import EngineSettings

UNKNOWN_CONTEXT = 4096  # tokens
NUMBERED = 65_536  # strengths and first tokens whose pages are found again
LONGEST_STEP = 60.0  # seconds that a stop waits for the step that runs
CPU_SHARE, DEVICE_SHARE = 0.1, 0.8  # of the free memory, where nothing is set


class _Outlet(OutputRouter):
    """Hands what the manager has to say of requests to one function, in its thread."""

    def __init__(self, deliver: Callable[[Sequence[Any]], None]):
        super().__init__()
        self._hand_over = deliver

    def deliver(self, output: Any) -> None:
        """Hand over one output."""
        self._hand_over([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Hand over those of a step."""
        self._hand_over(outputs)


class ContinuousBatch:
    """A running batch over pages: requests come and go; `deliver` is called with transformers' outputs of a step."""

    def __init__(self, model: PagedModel, settings: EngineSettings, deliver: Callable[[Sequence[Any]], None]):
        self._settings = settings
        self._model: Any = model  # transformers has a class for what it needs of one, and takes any module
        self.prefix_hit_tokens = 0
        self._rows: WeakValueDictionary[str, Row] = WeakValueDictionary()
        self._numbers: dict[tuple[Any, int], int] = {}  # of what pages depend on besides tokens, and a first token
        self._counter = count(1)
        config = GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1)
        self._manager = ContinuousBatchingManager(self._model, config, self._batching())
        self._manager.logit_processor = model.rows
        self._manager.output_router = _Outlet(deliver)
        self._manager.warmup()  # makes the pages here, where an error has a caller
        cache: Any = self._processor.cache
        fits = infer_max_single_request_tokens(cache)
        self.context_length = min(fits, self._context() or fits)
        self._count_hits(cache)
        if model.steering:
            self._keep_apart(cache)

    @property
    def rows(self) -> int:
        """How many requests may run at a time."""
        return self._settings.max_rows or (16 if self._model.device.type == "cpu" else 64)

    def _batching(self) -> ContinuousBatchingConfig:
        """Sizes, of which those that nobody set follow from the context and a share of the free memory."""
        settings, on_cpu, rows = self._settings, self._model.device.type == "cpu", self.rows
        tokens = max(rows, settings.max_batch_tokens or (256 if on_cpu else 2048))
        blocks = settings.num_blocks
        if blocks is None:
            free = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info(self._model.device)[0]
            share = settings.memory_share or (CPU_SHARE if on_cpu else DEVICE_SHARE)
            # Beside keys and values, every token of the pages has a column in the masks of a step.
            each = self._model.bytes_per_token() + 2 * tokens * self._model.dtype.itemsize
            useful = rows * (self._context() or UNKNOWN_CONTEXT)
            blocks = min(ceil(useful / settings.page_size) + 1, int(free * share / each / settings.page_size))
            if blocks < 2:
                raise DualHeadError(
                    f"{share:.0%} of the free memory ({free / 2**30:.1f} GiB) holds no two pages of "
                    f"{settings.page_size} tokens. Raise memory_share, or lower page_size or max_batch_tokens."
                )
        return ContinuousBatchingConfig(
            page_size=settings.page_size,
            num_blocks=blocks,
            max_batch_tokens=tokens,
            max_requests_per_batch=rows,
            max_blocks_per_request=0,
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,
        )

    def _context(self) -> int | None:
        """Of the settings and the backbone the shorter; None where neither says one."""
        lengths = (self._settings.context_length, context_length(self._model.aligned.backbone.config))
        return min((length for length in lengths if length is not None), default=None)

    @property
    def _processor(self) -> Any:
        return self._manager.batch_processor

    def _count_hits(self, cache: Any) -> None:
        search = cache.search_prefix_match

        def counted(request_id: str, tokens: list[int]) -> int:
            hits = search(request_id, tokens)
            self.prefix_hit_tokens += hits
            return hits

        cache.search_prefix_match = counted

    def _keep_apart(self, cache: Any) -> None:
        """Share no page between requests whose pages differ: their first token is told apart where pages are looked up.

        of no vectors      tokens 5 6 7      looked up as    5 6 7
        of vectors at 2                                  V + 1 6 7      1: the number of (at 2, token 5)
        """
        size = self._model.aligned.backbone.shape.vocab_size

        def keyed(request_id: str, tokens: list[int]) -> list[int]:
            key = self._rows[request_id].key(self._model.steering)
            if not key or not tokens:
                return tokens
            if len(self._numbers) > NUMBERED:
                self._numbers.clear()  # pages of before are not found any more
            number = self._numbers.get((key, tokens[0])) or next(self._counter)
            self._numbers[key, tokens[0]] = number
            return [size + number, *tokens[1:]]

        def marking(mark: Callable[[str, list[int], int], None]) -> Callable[[str, list[int], int], None]:
            return lambda request_id, tokens, count: mark(request_id, keyed(request_id, tokens), count)

        search = cache.search_prefix_match
        cache.search_prefix_match = lambda request_id, tokens: search(request_id, keyed(request_id, tokens))
        for allocator in cache.cache_allocators.values():
            allocator.mark_complete_blocks = marking(allocator.mark_complete_blocks)

    def start(self) -> None:
        """Run in a thread that does not keep the process alive."""
        release_workers()  # of this thread, which loaded the model; the thread that generates has workers of its own
        # A thread is a daemon where the thread that starts it is one.
        starter = Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()

    @property
    def runs(self) -> bool:
        """Whether its thread lives, if only to finish what it has."""
        return self._manager.is_running()

    @property
    def alive(self) -> bool:
        """Whether it runs and takes requests."""
        return self.runs and self._manager.background_thread_status.can_accept_new_requests() is None

    @property
    def fatal_error(self) -> Exception | None:
        """What it died of."""
        return self._manager.background_thread_status.fatal_error

    def stop(self, drain: float) -> None:
        """Take no more requests, let those that run finish within so many seconds, end, and free the pages."""
        thread = self._manager._generation_thread
        if thread is None:
            return
        if drain > 0 and self.runs:
            self._manager.background_thread_status.request_stop(BackgroundThreadStatus.FLUSH_AND_STOP, 0)
            self._manager._wake_up_loop.set()
            thread.join(drain)
        self._manager.stop(block=True, timeout=LONGEST_STEP, hard_stop=True)

    def add(self, row: Row, tokens: Sequence[int], *, max_tokens: int, end_tokens: Sequence[int]) -> bool:
        """Put a request into the queue, without waiting; False where none are taken any more."""
        self._rows[row.id] = row
        request = {"max_new_tokens": max_tokens, "eos_token_id": list(end_tokens) or -1, "streaming": True}
        return self._manager.add_request(list(tokens), row.id, **request, row=row) is not None

    def cancel(self, request_id: str) -> None:
        """Take a request out before the next step."""
        self._manager.cancel_request(request_id)

    def counts(self) -> tuple[int, int, float]:
        """Requests in rows, in the queue, and the used share of the pages."""
        processor = self._processor
        if processor is None:
            return 0, 0, 0.0
        scheduler = processor.scheduler
        waiting = len(scheduler.waiting_requests) + self._manager.input_queue.qsize()
        return len(scheduler.active_requests), waiting, 1 - processor.cache.compute_free_capacity()
