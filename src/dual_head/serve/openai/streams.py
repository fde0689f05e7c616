"""Running a request: its choices as they come, to their end, or until its client leaves or its time is up."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dual_head.errors import DualHeadError
from dual_head.serve.host import RunningEngine
from dual_head.serve.openai.errors import Refused, refusal_of
from dual_head.serve.openai.records import RequestRecord
from dual_head.serve.openai.replies import CompletionForm, Form, usage
from dual_head.serve.types import EngineStopped, GenerationRequest, Piece

logger = logging.getLogger(__name__)
T = TypeVar("T")
GRACE = 10.0  # seconds beyond its time that a stream has to be read
DONE = b"data: [DONE]\n\n"


async def pieces(
    engine: RunningEngine, requests: Sequence[GenerationRequest], record: RequestRecord, seconds: float
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several choices, each with the index of its choice, as they come; leaving cancels what runs.

    Errors: time that is up (504), an engine that stopped (503), a request that the engine refuses (400).
    """
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def follow(index: int, request: GenerationRequest) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(engine.stream(request)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    queue.put_nowait((index, piece))
        except Exception as error:
            end = error
        queue.put_nowait((index, end))

    until = asyncio.get_running_loop().time() + seconds - record.elapsed()
    tasks = [asyncio.create_task(follow(i, request)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            async with asyncio.timeout_at(until):
                index, piece = await queue.get()
            if isinstance(piece, Piece):
                record.received(index, piece)
                yield index, piece
            elif piece is not None:
                raise piece
            else:
                running -= 1
    except TimeoutError as error:
        record.reason = "timeout"
        raise Refused(f"The request had not ended after {seconds:g} s. Ask for fewer tokens.", status=504) from error
    except EngineStopped as error:
        record.reason = "error"
        raise Refused("The engine stopped. Try again later.", status=503, retry_after=5) from error
    except DualHeadError as error:
        record.reason = "error"
        raise Refused(str(error), _param(requests[0])) from error
    except (GeneratorExit, asyncio.CancelledError):
        record.reason = record.reason or "abort"
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _param(request: GenerationRequest) -> str | None:
    """What an engine's refusal is about: a grammar is all that only the engine can read."""
    return "response_format" if request.sampling.grammar else None


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled when the client leaves. Errors: `ClientLeft`."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientLeft
        return tasks[0].result()  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole_choices(run: AsyncIterator[tuple[int, Piece]], count: int) -> list[Piece]:
    """Every choice as one piece, when all have ended."""
    parts: list[list[Piece]] = [[] for _ in range(count)]
    async for index, piece in run:
        parts[index].append(piece)
    return [join_pieces(part) for part in parts]


def join_pieces(parts: Sequence[Piece]) -> Piece:
    """Pieces of one choice as one."""
    tokens = tuple(token for part in parts for token in part.tokens)
    reason = parts[-1].finish_reason if parts else None
    return Piece("".join(part.text for part in parts), tokens, reason)


@dataclass(frozen=True)
class Heading:
    """What every chunk of a stream begins with, what the first one and the counts of tokens add."""

    chunk: dict[str, Any]
    first: dict[str, Any]
    prompt_tokens: int
    include_usage: bool


async def events(
    run: AsyncIterator[tuple[int, Piece]], count: int, form: Form, heading: Heading
) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream as server-sent events; an error is the last one, as the status has been sent by then."""
    tokens, started = 0, False
    whole: dict[int, list[Piece]] = {}  # of replies that are parsed when they are whole

    def event(*choices: dict[str, Any], **more: Any) -> bytes:
        nonlocal started
        more = {**more, **({} if started else heading.first)}
        started = True
        return _event({**heading.chunk, **more, "choices": choices})

    try:
        for index in range(count):
            if opening := form.opening(index):
                yield event(opening)
        async for index, piece in run:
            tokens += len(piece.tokens)
            if isinstance(form, CompletionForm) or form.parser is None:
                if piece.text or piece.finish_reason or (form.logprobs and piece.tokens):
                    yield event(form.chunk(index, piece))
                continue
            whole.setdefault(index, []).append(piece)
            if piece.finish_reason:
                yield event(form.called(index, join_pieces(whole.pop(index))))
        if heading.include_usage:
            yield event(usage=usage(heading.prompt_tokens, tokens))
    except Exception as error:
        if not isinstance(error, Refused):
            logger.exception("A stream failed.")
        yield _event(refusal_of(error).body())
    yield DONE


def _event(content: Any) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


class EventStream(StreamingResponse):
    """Sends events, and in any case closes what they come from; a client that does not read is left in the end."""

    def __init__(self, content: AsyncGenerator[bytes, None], stack: AsyncExitStack, seconds: float):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._stack, self._seconds = content, stack, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        async with self._stack:
            self._stack.push_async_callback(self._events.aclose)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds + GRACE):
                    await super().__call__(scope, receive, send)
