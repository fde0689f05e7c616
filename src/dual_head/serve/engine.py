"""The engine: requests of any strengths and sampling in one running batch, streamed or all at once. No HTTP.

    caller's thread or loop    submit -> ........................ -> pieces of text
    generation thread                    forward -> next tokens -> outputs

The generation thread chooses tokens and records them with the request; text is made where it is read.
"""

import asyncio
import atexit
import queue
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError
from dual_head.model import AlignedModel
from dual_head.model.alpha import LinearDecay
from dual_head.model.generate import end_tokens
from dual_head.serve import sampling
from dual_head.serve.grammar import Grammars
from dual_head.serve.reply import Reply
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import EngineStats, EngineStopped, GenerationRequest, Piece
from dual_head.serve.versions import require_tested_transformers

require_tested_transformers()
from dual_head.serve.batch import ContinuousBatch  # noqa: E402
from dual_head.serve.choice import RunningRequest, choose_tokens  # noqa: E402
from dual_head.serve.paged import PagedModel, Step, strength_numbers  # noqa: E402

WATCH = 1.0  # seconds between looks at whether the generation thread lives
GROUPS = 8  # in which requests of a list come into the rows


class Engine:
    """Generates for many requests at once from a model and its guides; `with Engine(...)` starts and stops it.

    Errors: guides or a backbone that cannot be served; transformers that was not tested.
    """

    def __init__(self, model: AlignedModel, tokenizer: PreTrainedTokenizerBase, settings: EngineSettings | None = None):
        model.require_same_tokenizer(tokenizer)
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or EngineSettings()
        self.vocabulary = model.backbone.config.get_text_config(decoder=True).vocab_size
        self.end_tokens = end_tokens(model)
        self._paged = PagedModel(model, self._choose)
        self._grammars = Grammars(tokenizer, model.backbone.shape.vocab_size, self.end_tokens)
        self._running: dict[str, RunningRequest] = {}
        self._numbers = count()
        self._prompt_tokens = self._generated_tokens = self._hits = 0  # hits: of batches before this one
        self._batch = self._new_batch()
        self._stopped = False
        self._death: str | None = None  # what the last requests were told that failed together
        atexit.register(_stop, weakref.ref(self))

    def _new_batch(self) -> ContinuousBatch:
        return ContinuousBatch(self._paged, self.settings, self._deliver)

    # ---- running ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take requests; also after a stop, with empty pages."""
        if self.alive:
            return
        if self._stopped:
            self._batch.stop(0.0)  # what died holds its pages until then
            self._hits += self._batch.prefix_hit_tokens
            self._batch = self._new_batch()
        self._death = None
        self._stopped = True  # whatever ends this batch, it is not started again
        self._batch.start()

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._batch.alive

    @property
    def context_length(self) -> int:
        """How many tokens prompt and reply may have together: the backbone's context, or what the pages hold."""
        return self._batch.context_length

    def stop(self, drain: float = 0.0) -> None:
        """Take no more requests, let running ones finish within `drain` seconds, and end; the others get an error."""
        self._batch.stop(drain)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stats(self) -> EngineStats:
        """Counts of now, and of tokens since the engine was made."""
        running, waiting, usage = self._batch.counts()
        hits = self._hits + self._batch.prefix_hit_tokens
        return EngineStats(running, waiting, usage, hits, self._prompt_tokens, self._generated_tokens)

    # ---- requests --------------------------------------------------------------------------------------

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that could not be generated, with the remedy."""
        ids, room = request.prompt_ids, self.context_length
        if not len(ids):
            raise DualHeadError("The prompt has no tokens. Give at least one.")
        if not (min(ids) >= 0 and max(ids) < self.vocabulary):
            raise DualHeadError(
                f"Token ids are from 0 to {self.vocabulary - 1}; the prompt has {min(ids)} to {max(ids)}."
            )
        if len(ids) >= room:
            raise DualHeadError(
                f"The prompt has {len(ids)} tokens and the context is {room}. Shorten it to at most {room - 1} tokens."
            )
        if not 1 <= request.max_tokens <= room - len(ids):
            raise DualHeadError(
                f"max_tokens must be from 1 to {room - len(ids)}, not {request.max_tokens}: the context is {room} "
                f"tokens and the prompt has {len(ids)}."
            )
        if not all(request.stop):
            raise DualHeadError("A stop string is empty. Leave it out.")
        self.model.resolve_alpha(dict(request.alpha), 1)
        for name, alpha in request.alpha.items():
            if callable(alpha) and not isinstance(alpha, LinearDecay):
                raise DualHeadError(f"alpha of '{name}' is a number or a LinearDecay; no other schedule can be served.")
        sampling.require_sampling(request.sampling, self.vocabulary)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        """Yield text and tokens as they come; leaving the iteration cancels the request.

        Errors: a request that could not be generated; `EngineStopped`.
        """
        outputs: asyncio.Queue[tuple[bool, str | None]] = asyncio.Queue()
        make = self._prepare
        running = make(request) if request.sampling.grammar is None else await asyncio.to_thread(make, request)
        running.deliver, running.loop = outputs.put_nowait, asyncio.get_running_loop()
        reply = self._reply(running)
        try:
            self._submit(running)
            position = 0
            while True:
                try:
                    news = [await asyncio.wait_for(outputs.get(), WATCH)]
                except TimeoutError:
                    self._require(self._batch.runs)
                    continue
                while not outputs.empty():
                    news.append(outputs.get_nowait())
                piece, position = self._piece(running, reply, position, news)
                yield piece
                if piece.finish_reason:
                    return
        finally:
            self._leave(running)

    def generate(
        self, requests: Sequence[GenerationRequest], *, progress: Callable[[int], None] | None = None
    ) -> list[Piece]:
        """Generate for all requests and return one whole piece for each; progress: told how many are done.

        Errors: as `stream`; one request that could not be generated refuses all.
        """
        pieces = {}
        for i, piece in self.as_they_end(requests):
            pieces[i] = piece
            if progress:
                progress(len(pieces))
        return [pieces[i] for i in range(len(requests))]

    def as_they_end(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Piece]]:
        """Number and whole piece of each request, in the order in which they end; leaving it cancels the others.

        Requests come in groups, an eighth of the rows, each when as many have ended: in the step of a prompt attention
        goes row by row (`AttentionByRequest`), which costs all rows more than the few that stand empty. Errors: as
        `generate`.
        """
        outputs: queue.SimpleQueue[tuple[int, tuple[bool, str | None]]] = queue.SimpleQueue()
        runs = [self._prepare(request) for request in requests]
        replies = [self._reply(running) for running in runs]
        pieces: list[list[Piece]] = [[] for _ in runs]
        position, left = [0] * len(runs), set(range(len(runs)))
        try:
            waiting = iter(range(len(runs)))
            ended, group = self._batch.rows, max(1, self._batch.rows // GROUPS)
            while left:
                if ended >= group:
                    for i in islice(waiting, ended):
                        runs[i].deliver = lambda news, i=i: outputs.put((i, news))
                        self._submit(runs[i])
                    ended = 0
                try:
                    i, news = outputs.get(timeout=WATCH)
                except queue.Empty:
                    self._require(self._batch.runs)
                    continue
                if i not in left:
                    continue  # it came to a stop string, and what came after it does not count
                piece, position[i] = self._piece(runs[i], replies[i], position[i], [news])
                pieces[i].append(piece)
                if piece.finish_reason:
                    left.discard(i)
                    ended += 1
                    self._leave(runs[i])
                    yield i, _whole(pieces[i])
        finally:
            for i in left:
                self._leave(runs[i])

    def _prepare(self, request: GenerationRequest) -> RunningRequest:
        self.check(request)
        settings = request.sampling
        return RunningRequest(
            id=f"request-{next(self._numbers)}",
            prompt_length=len(request.prompt_ids),
            strengths=tuple(strength_numbers(request.alpha.get(name, 0.0)) for name in self._paged.names),
            request=request,
            # A grammar that is done allows nothing but the end.
            end_tokens=[] if request.ignore_eos and settings.grammar is None else self.end_tokens,
            seed=secrets.randbits(63) if settings.seed is None else settings.seed,
            matcher=None if settings.grammar is None else self._grammars.matcher(settings.grammar),
            deliver=lambda _: None,
            edits=sampling.edits_of(settings, request.prompt_ids),
        )

    def _reply(self, running: RunningRequest) -> Reply:
        return Reply(self.tokenizer, running.request.stop, running.end_tokens)

    def _submit(self, running: RunningRequest) -> None:
        self._require(self.alive)
        self._running[running.id] = running
        request = running.request
        if not self._batch.add(
            running, request.prompt_ids, max_tokens=request.max_tokens, end_tokens=running.end_tokens
        ):
            self._require(False)
        self._prompt_tokens += running.prompt_length

    def _leave(self, running: RunningRequest) -> None:
        """Take a request out, unless it has finished."""
        if self._running.pop(running.id, None) is not None:
            self._batch.cancel(running.id)

    def _require(self, condition: bool) -> None:
        if not condition:
            raise _stopped(self._death) from self._batch.fatal_error

    def _piece(
        self, running: RunningRequest, reply: Reply, position: int, news: list[tuple[bool, str | None]]
    ) -> tuple[Piece, int]:
        """What the outputs brought behind that position of the reply, and the position after it."""
        finished, error = news[-1]
        if error is not None:
            self._running.pop(running.id, None)
            raise _stopped(error)
        if running.error is not None:
            raise DualHeadError(running.error)
        records = running.records[position : position + len(news)]
        if finished:
            self._running.pop(running.id, None)
        return reply.add(records, finished=finished), position + len(records)

    # ---- in the generation thread ----------------------------------------------------------------------

    def _deliver(self, outputs: Iterable[Any]) -> None:
        """Hand each request what the step brought it; every event loop is woken once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Callable, tuple[bool, str | None]]]] = {}
        for output in outputs:
            self._death = output.error or self._death
            running = self._running.get(output.request_id)
            if running is None:
                if not output.is_finished():  # its cancelling came before the request itself was seen
                    self._batch.cancel(output.request_id)
                continue
            news = (output.is_finished(), output.error)
            if running.loop is None:
                running.deliver(news)
            else:
                by_loop.setdefault(running.loop, []).append((running.deliver, news))
        for loop, calls in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_call_all, calls)

    def _choose(self, step: Step) -> Tensor:
        self._generated_tokens += len(step.rows)
        return choose_tokens(self.model, step)


def _stopped(reason: str | None) -> EngineStopped:
    if reason is None:
        return EngineStopped("The engine is not running. Start it.")
    return EngineStopped(f"The engine stopped generating: {reason}. Start it again.")


def _call_all(calls: list[tuple[Callable, Any]]) -> None:
    for call, news in calls:
        call(news)


def _stop(engine: "weakref.ref[Engine]") -> None:
    """Before the interpreter ends: a thread inside torch must not outlive it."""
    running = engine()
    if running is not None and running.alive:
        running.stop()


def _whole(pieces: Sequence[Piece]) -> Piece:
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].finish_reason)
