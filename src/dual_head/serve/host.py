"""The engine of a running server: watched and made anew when its worker dies, and swapped when guides change.

It knows nothing of HTTP but its refusals.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, Protocol

from dual_head.backbone.checkpoint import CONFIG_NAME, SAFE_WEIGHTS_NAME, find_file
from dual_head.errors import DualHeadError
from dual_head.model.aligned import AlignedModel
from dual_head.serve.openai.errors import Refused
from dual_head.serve.types import EngineStats, EngineStopped, GenerationRequest, Piece, Sampling

logger = logging.getLogger(__name__)
WATCH = 0.2  # seconds between two looks at the worker
LONGEST_PAUSE = 60.0  # seconds between two attempts to start one
WARM_UP = 4  # tokens

State = Literal["starting", "ready", "restarting", "stopped"]


class RunningEngine(Protocol):
    """What a server needs of `engine.Engine`."""

    @property
    def alive(self) -> bool: ...
    @property
    def context_length(self) -> int: ...
    def start(self) -> None: ...
    def stop(self, drain: float = 0.0) -> None: ...
    def stats(self) -> EngineStats: ...
    def stream(self, request: GenerationRequest) -> AsyncIterator[Piece]: ...


class EngineHost:
    """One engine over one model, made by `build`, for at most `max_queue` choices at a time, running and waiting.

    patience: seconds that requests have to end before guides change; refusal: why the model cannot generate at its
    own strengths, which ends the start.
    """

    def __init__(
        self, model: AlignedModel, build: Callable[[AlignedModel], RunningEngine], *, max_queue: int, patience: float
    ):
        self.model, self.max_queue, self.patience = model, max_queue, patience
        self.admitted = self.restarts = 0
        self.refusal: DualHeadError | None = None
        self._state: State = "starting"
        self._build = build
        self._running = 0
        self._open, self._idle = asyncio.Event(), asyncio.Event()  # requests may begin; none is running
        self._open.set()
        self._idle.set()
        self._change = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self.engine = build(model)  # now, so that what cannot be served is refused before anybody is answered
        self.engine.start()

    @property
    def state(self) -> State:
        """What it does; while guides change it stays ready, since requests are taken and wait."""
        dead = self._open.is_set() and not self.engine.alive
        return "restarting" if self._state == "ready" and dead else self._state

    # ---- requests --------------------------------------------------------------------------------------

    @contextmanager
    def reserve_rows(self, rows: int) -> Iterator[None]:
        """Count so many choices for as long as the block lasts. Errors: no engine (503), too many choices (429)."""
        self._require_ready()
        if self.admitted + rows > self.max_queue:
            raise Refused("Too many requests are running and waiting. Try again later.", status=429, retry_after=1)
        self.admitted += rows
        try:
            yield
        finally:
            self.admitted -= rows

    @asynccontextmanager
    async def hold_engine(self) -> AsyncIterator[RunningEngine]:
        """The engine, whose guides stay as they are for as long as the block lasts; waits while they change."""
        while not self._open.is_set():
            await self._open.wait()
        self._require_ready()
        self._running += 1
        self._idle.clear()
        try:
            yield self.engine
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def stats(self) -> EngineStats:
        """Counts of the engine; those of one that has stopped are zeros."""
        try:
            return self.engine.stats()
        except EngineStopped:
            return EngineStats()

    def _require_ready(self) -> None:
        if self.state != "ready":
            raise Refused(f"The engine is {self.state}. Try again later.", status=503, retry_after=5)

    # ---- its life --------------------------------------------------------------------------------------

    def start(self, ready: Callable[[], None] = lambda: None) -> None:
        """Generate a few tokens, call `ready`, and watch the engine from now on."""
        self._watch = asyncio.create_task(self._watch_worker(ready))

    async def stop(self, drain: float = 0.0) -> None:
        """Let requests end for so many seconds, and stop."""
        self._state = "stopped"
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.to_thread(self.engine.stop, drain)

    async def _warm_up(self) -> None:
        """Generate once, so that the first request waits for no compiler and no allocation."""
        config = self.model.config
        token = self.model.backbone.config.get_text_config(decoder=True).bos_token_id
        request = GenerationRequest(
            prompt_ids=[token if isinstance(token, int) else 0],
            max_tokens=WARM_UP,
            alpha=config.alpha or {},
            sampling=Sampling(temperature=0.0),
            ignore_eos=True,
        )
        async for _ in self.engine.stream(request):
            pass

    async def _watch_worker(self, ready: Callable[[], None]) -> None:
        try:
            await self._warm_up()
            self._state = "ready"
        except Exception as error:
            if isinstance(error, DualHeadError) and not isinstance(error, EngineStopped):  # no other worker helps
                self._state, self.refusal = "stopped", error
                return
            logger.warning("The engine generated no first tokens (%s).", error)
            await self._restart()
        ready()
        while True:
            await asyncio.sleep(WATCH)
            if not self.engine.alive and not self._change.locked():
                async with self._change:
                    await self._restart()

    async def _restart(self) -> None:
        """Make engines until one generates; the pause between two attempts doubles."""
        self._state, pause = "restarting", WATCH
        while self._state == "restarting":
            self.restarts += 1
            try:
                await asyncio.to_thread(self._replace)
                await self._warm_up()
                self._state = "ready"
                logger.warning("The worker of the engine had died. A new one is running.")
            except Exception as error:  # of a device or of memory: it may be there again later
                logger.warning("The engine cannot be started (%s). The next attempt is in %.1f s.", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _replace(self) -> None:
        self.engine.stop(0.0)
        engine = self._build(self.model)
        engine.start()
        self.engine = engine

    # ---- guides ----------------------------------------------------------------------------------------

    async def attach(self, name: str, source: str, source_name: str | None, alpha: float | None) -> None:
        """Add a guide when what runs has ended. Errors: see `AlignedModel.attach`; guides that are not served."""
        for file in (CONFIG_NAME, SAFE_WEIGHTS_NAME):  # a download holds nobody up
            await asyncio.to_thread(find_file, source, file)
        await self._change_guides(lambda: self.model.attach(name, source, source_name=source_name, alpha=alpha))

    async def detach(self, name: str) -> None:
        """Remove a guide when what runs has ended. Errors: an unknown name (404)."""

        def edit() -> None:
            self._require_guide(name)  # which another request may have removed while this one waited
            self.model.detach(name)

        self._require_guide(name)
        await self._change_guides(edit)

    def _require_guide(self, name: str) -> None:
        if name not in (self.model.config.guides or {}):
            raise Refused(f"There is no guide '{name}'.", "name", status=404)

    async def _change_guides(self, edit: Callable[[], None]) -> None:
        """Hold back new requests, wait for those that run, change the model, and go on with a new engine.

        A change that is refused leaves the engine, or one with the guides of before.
        """
        async with self._change:
            self._require_ready()
            self._open.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), self.patience)
                await asyncio.to_thread(self._apply, edit)
            except TimeoutError as error:
                raise Refused(
                    f"Requests had not ended after {self.patience:g} s. Try again later.", status=503, retry_after=5
                ) from error
            finally:
                self._open.set()

    def _apply(self, edit: Callable[[], None]) -> None:
        restore = self.model.keep_guides()
        edit()
        try:
            self._replace()
        except Exception:
            restore()
            self._replace()
            raise
