"""A model behind an OpenAI-compatible endpoint, asked for replies through the official client.

It decides how many requests run at once and a minute, what to do about failures, and what replies cost. What is asked,
and what a reply means, is the caller's.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from dual_head.console.secrets import masked, without
from dual_head.data import Message
from dual_head.errors import DualHeadError, require
from dual_head.evaluate.endpoints.completions import count_of, text_of
from dual_head.evaluate.endpoints.connection import bounded_client, parted
from dual_head.options import option, require_bounds

__all__ = ["FAILURES", "Endpoint", "EndpointOptions", "Reply", "Request"]

OPENAI = "https://api.openai.com/v1"
FORM = "openai:MODEL or openai:MODEL@http://127.0.0.1:8000/v1"
FAILURES = 8  # requests in a row without a reply, after which an endpoint is taken to be down
LONGEST_WAIT = 10**6  # seconds that a reply may take
ALPHA_HEADER = "dual-head-alpha"  # of a reply whose body has no room for the strengths that were used
BRIEF = 200  # characters of what a server says
# What servers say of a parameter that they do not take; that a number is too large concerns one request.
NOT_TAKEN = ("unsupported", "not support", "unrecognized", "unknown", "unexpected", "not permitted", "not allowed")
AGAIN = "What came is kept: run the same command again, and it goes on."


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How an endpoint is asked.

    base_url: where it is, such as http://127.0.0.1:8000/v1; None for OPENAI_BASE_URL or OpenAI's own; api_key: None
    for OPENAI_API_KEY; concurrency: requests at once; requests_per_minute: None for no limit; max_retries: of each
    request, after a timeout, 429 or 5xx; timeout: seconds for the whole of one reply; limit: what the endpoint calls
    the limit of a reply's tokens, "none" to send no limit; input_price, output_price: for a million tokens.
    """

    base_url: str | None = None
    api_key: str | None = None
    concurrency: int = option(8, least=1)
    requests_per_minute: float | None = option(None, above=0)
    max_retries: int = option(4, least=0)
    timeout: float = option(120.0, above=0, most=LONGEST_WAIT)
    limit: Literal["max_tokens", "max_completion_tokens", "none"] = "max_tokens"
    input_price: float | None = option(None, least=0)
    output_price: float | None = option(None, least=0)

    def __post_init__(self) -> None:
        require_bounds(self, prefix="")


@dataclass(frozen=True)
class Request:
    """A conversation, the most tokens of its reply, and further parameters; seed None where none is sent.

    alpha: strengths of the guides of a server that has some, which it repeats in its reply.
    """

    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | Mapping[str, float] | None = None


@dataclass(frozen=True)
class Reply:
    """What came: a text and its first choice, or a flaw that says why nothing did.

    used: {"requests", "input_tokens", "output_tokens"} and "cost" where prices are given.
    """

    text: str = ""
    flaw: str = ""
    used: dict[str, float] = field(default_factory=dict)
    choice: Any = None


class Pace:
    """Lets a thread through `per_minute` times a minute, evenly; retries count as requests."""

    def __init__(self, per_minute: float | None):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def take_turn(self) -> None:
        """Wait until the next request may begin."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._gap
        time.sleep(begin - now)


class _Stop(Exception):
    """The endpoint refuses, or is not there, so that further requests are useless; the text names the remedy."""


class Endpoint:
    """A model behind an endpoint. where: MODEL, MODEL@URL, or @URL for the model that the server takes by itself.

    noun: what the model is to the user, for messages; flag: with which its options are given. Errors: no key, an
    address that cannot be read; the client is not installed.
    """

    def __init__(self, where: str, options: EndpointOptions, *, noun: str, flag: str = ""):
        self.options, self._noun, self._flag = options, noun, flag
        self._openai: Any = require("openai", "judge")
        self.model, _, url = where.partition("@http")
        if not (self.model or url):
            raise DualHeadError(f"Which model is the {noun}? Say it: {FORM}.")
        address = f"http{url}" if url else options.base_url or os.environ.get("OPENAI_BASE_URL")
        self._address, self._user = parted((address or OPENAI).rstrip("/"), noun)
        self._key = options.api_key or os.environ.get("OPENAI_API_KEY") or ("none" if address else "")
        self._secrets = (self._key, *(self._user or ()))
        self.url = masked(self._address, *self._secrets)  # as it may be shown
        if not self._key:
            raise DualHeadError(
                "OpenAI's endpoint needs a key: set OPENAI_API_KEY. For an endpoint of your own give its address: "
                "openai:MODEL@http://127.0.0.1:8000/v1."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise DualHeadError(f"The {noun}'s key holds characters that no key has. Copy it again.")
        self._pace = Pace(options.requests_per_minute)
        self._sent = threading.local()  # requests for the item that a thread is at, retries included

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Ask for replies, several at once: (index, reply) as they come.

        What is still under way when it has to stop is waited for. Errors: an endpoint that is not there, refuses the
        key, does not know the model, or has no reply `FAILURES` times in a row; what came before was yielded by then.
        """
        client, failures, stop = self._connect(), 0, None
        waiting, replies = deque(enumerate(requests)), SimpleQueue[Any]()
        running = min(self.options.concurrency, len(requests))
        for _ in range(running):
            # Daemons, for which an interrupted process does not wait: each may have to wait for a reply, or its turn.
            threading.Thread(target=self._work, args=(client, waiting, replies), daemon=True).start()
        try:
            while running:
                index, reply = replies.get()
                if index is None:
                    running -= 1
                elif isinstance(reply, _Stop):
                    stop = stop or reply
                elif isinstance(reply, BaseException):
                    raise reply
                else:
                    failures = failures + 1 if reply.flaw else 0
                    if failures >= FAILURES:
                        stop = stop or _Stop(self._down(failures, reply.flaw))
                    yield index, reply
                if stop is not None:
                    waiting.clear()
            if stop is not None:
                raise DualHeadError(f"{stop} {AGAIN}") from stop.__cause__
        finally:
            waiting.clear()
            client.close()

    def _work(self, client: Any, waiting: deque[tuple[int, Request]], replies: SimpleQueue[Any]) -> None:
        """Ask for one waiting request after another: (index, reply or error) each, and (None, None) in the end."""
        with suppress(IndexError):
            while True:
                index, request = waiting.popleft()
                try:
                    replies.put((index, self._ask(client, request)))
                except BaseException as error:  # `ask` raises it
                    replies.put((index, error))
        replies.put((None, None))

    def _connect(self) -> Any:
        client = bounded_client(
            self._openai, seconds=self.options.timeout, before=self._before_request, auth=self._user
        )
        return self._openai.OpenAI(
            api_key=self._key,
            base_url=self._address,
            timeout=self.options.timeout,
            max_retries=self.options.max_retries,
            http_client=client,
        )

    def _ask(self, client: Any, request: Request) -> Reply:
        """Ask once, retries included. Errors: `_Stop` where no other request would get a reply either."""
        openai, self._sent.requests = self._openai, 0
        parameters: dict[str, Any] = {} if request.seed is None else {"seed": request.seed}
        if self.options.limit != "none":
            parameters[self.options.limit] = request.max_tokens
        if request.alpha is not None:
            parameters["extra_body"] = {"alpha": request.alpha}
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=self.model or None,  # type: ignore[arg-type]  # servers of one model take null for it
                messages=request.messages,
                temperature=request.temperature,
                **parameters,
                **request.parameters,
            )
        except openai.APITimeoutError:
            return self._no_reply(f"no whole reply came within {self.options.timeout:g} s")
        except openai.APIConnectionError as error:
            why = self._shown(error.__cause__ or error)
            raise _Stop(f"Nothing answers at {self.url} ({why}). Start the endpoint.") from error
        except openai.APIStatusError as error:
            if remedy := self._remedy(error):
                raise _Stop(remedy) from error
            options = f" (see the {self._noun}'s options limit and max_tokens)" if self._about_limit(error) else ""
            return self._no_reply(f"{error.status_code}: {self._brief(error)}{options}")
        except openai.OpenAIError as error:
            return self._no_reply(self._shown(error))
        try:
            completion = raw.parse()
            # Some servers pass over what they do not know.
            if request.alpha is not None and not (hasattr(completion, "alpha") or ALPHA_HEADER in raw.headers):
                raise _Stop(f"{self.url} took alpha and did nothing with it: it serves no guides. Leave out the '@'.")
            choice, used = completion.choices[0], self._usage(completion.usage)
            return Reply(without(text_of(choice.message.content), *self._secrets), used=used, choice=choice)
        except _Stop:
            raise
        except Exception as error:  # whatever reading raises: there is no end to what a server may send
            return self._no_reply(f"the reply is not a chat completion ({type(error).__name__})")

    def _before_request(self) -> None:
        self._sent.requests += 1
        self._pace.take_turn()

    def _no_reply(self, reason: str) -> Reply:
        return Reply(flaw=reason, used={"requests": float(self._sent.requests)})

    def _usage(self, usage: Any) -> dict[str, float]:
        tokens_in, tokens_out = (
            count_of(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens")
        )
        usage = {"requests": float(self._sent.requests), "input_tokens": tokens_in, "output_tokens": tokens_out}
        prices = (self.options.input_price, self.options.output_price)
        if prices != (None, None):
            usage["cost"] = (tokens_in * (prices[0] or 0.0) + tokens_out * (prices[1] or 0.0)) / 1e6
        return usage

    def _remedy(self, error: Any) -> str:
        """What to do about an error that any request would get; "" for one that may be this request's alone."""
        code, words = error.status_code, self._brief(error)
        if 300 <= code < 400:
            location = self._shown(error.response.headers.get("location", "nowhere"))
            return (
                f"{self.url} redirects to {location}, and redirections are not followed. If you trust it, give that "
                "address."
            )
        if code in (401, 403):
            return (
                f"{self.url} refuses the key ({code}: {words}). Set OPENAI_API_KEY to one that may use '{self.model}'."
            )
        if code == 404:
            return (
                f"{self.url} has no model '{self.model}' ({code}: {words}). Check the model's name, and the address: "
                "most end in /v1."
            )
        if code == 429 and getattr(error, "code", None) == "insufficient_quota":
            return f"The account at {self.url} has no credit left ({words})."
        if self._about_limit(error) and any(phrase in words.lower() for phrase in NOT_TAKEN):
            limit = self.options.limit
            alternative = "max_completion_tokens" if limit == "max_tokens" else "max_tokens"
            remedy = f"Give the {self._noun}'s option limit: {self._flag} limit={alternative}, or limit=none."
            return (
                f"{self.url} does not take {limit} for '{self.model}' ({code}: {words}). "
                f"{remedy if self._flag else 'Ask another model.'}"
            )
        return ""

    def _about_limit(self, error: Any) -> bool:
        """Whether the limit of tokens is refused, or is too high for this question."""
        return (
            error.status_code in (400, 422)
            and self.options.limit in self._brief(error)
            and self.options.limit != "none"
        )

    def _brief(self, error: Any) -> str:
        """What the server said of an error."""
        body = error.body
        words = body.get("message") if isinstance(body, dict) else body
        return self._shown(words or error.message)

    def _shown(self, words: Any) -> str:
        """The server's words on one line, short and without secrets."""
        return " ".join(masked(str(words)[: 20 * BRIEF], *self._secrets).split())[:BRIEF]

    def _down(self, failures: int, flaw: str) -> str:
        return (
            f"The endpoint {self.url} is down, or refuses what it is asked: {failures} requests in a row had no "
            f"reply, each after up to {self.options.max_retries} retries (the last one: {flaw})."
        )
