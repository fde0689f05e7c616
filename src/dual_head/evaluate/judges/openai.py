"""A language model behind an OpenAI-compatible endpoint as judge, asked through the official client.

It knows requests: how many at once and a minute, what failed and whether to go on, what they cost. What is asked
and how a verdict is written is `prompts`.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

from dual_head.data import Message
from dual_head.errors import DualHeadError, require
from dual_head.evaluate.endpoints.completions import count_of, text_of, verdict_of
from dual_head.evaluate.endpoints.connection import bounded_client, parted
from dual_head.evaluate.judges.base import NO_ANSWER
from dual_head.evaluate.judges.prompts import Pattern, Unreadable, load_family
from dual_head.evaluate.types import Comparison, Question, Replies, Verdict
from dual_head.fingerprint import digest
from dual_head.secrets import masked, without

OPENAI = "https://api.openai.com/v1"
FAILURES = 8  # questions in a row without an answer, after which an endpoint is taken to be down
TOP_LOGPROBS = 5  # the most that every endpoint gives
ALONE_TOKENS = 4  # of a reply that is its verdict and nothing else
BRIEF = 200  # characters of what a server says
# What servers say of a parameter that they do not take; that a number is too large concerns one question.
NOT_TAKEN = ("unsupported", "not support", "unrecognized", "unknown", "unexpected", "not permitted", "not allowed")
AGAIN = "What was judged is kept: run the same command again, and it goes on."

Item = tuple[list[Message], Pattern]


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How an endpoint is asked.

    base_url: where it is, such as http://127.0.0.1:8000/v1; None for OPENAI_BASE_URL or OpenAI's own; api_key: None
    for OPENAI_API_KEY; template: see `load_family`; concurrency: requests at once; requests_per_minute: None for no
    limit; max_retries: of each request, after a timeout, 429 or 5xx; timeout: seconds for the whole of one reply;
    max_tokens: of a judge's reply; limit: what the endpoint calls that, "none" to send no limit; seed: None where the
    endpoint takes none; input_price, output_price: for a million tokens.
    """

    base_url: str | None = None
    api_key: str | None = None
    template: str = "mt-bench"
    concurrency: int = 8
    requests_per_minute: float | None = None
    max_retries: int = 4
    timeout: float = 120.0
    max_tokens: int = 1024
    limit: Literal["max_tokens", "max_completion_tokens", "none"] = "max_tokens"
    temperature: float = 0.0
    seed: int | None = 0
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        if min(self.concurrency, self.max_tokens) < 1 or min(self.max_retries, self.temperature) < 0:
            raise DualHeadError("concurrency and max_tokens are at least 1; max_retries and temperature at least 0.")
        if self.timeout <= 0 or (self.requests_per_minute is not None and self.requests_per_minute <= 0):
            raise DualHeadError("timeout and requests_per_minute are above 0.")


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
    """The endpoint refuses, or is not there: to ask for more would be useless. The text has the remedy."""


class EndpointJudge:
    """Asks a model for a verdict on each comparison or answer; both orders are worth asking for.

    where: MODEL, or MODEL@URL. used counts {"requests", "input_tokens", "output_tokens"} and "cost" where prices
    are given. A question that has no answer after its retries gets a flaw that begins with `NO_ANSWER`. Errors: no
    key, an endpoint that is not there, refuses the key, does not know the model, or has no answer `FAILURES` times
    in a row; the verdicts that came before have been yielded by then.
    """

    form = "openai:MODEL or openai:MODEL@http://127.0.0.1:8000/v1"
    Options = EndpointOptions
    symmetric = False

    def __init__(self, where: str, options: EndpointOptions | None = None):
        self.options = options = options or EndpointOptions()
        self._openai: Any = require("openai", "judge")
        self.name, _, url = where.partition("@http")
        if not self.name:
            raise DualHeadError(f"Which model is to judge? Say it: {self.form}.")
        own = f"http{url}" if url else options.base_url or os.environ.get("OPENAI_BASE_URL")
        self._address, self._user = parted((own or OPENAI).rstrip("/"))
        self._key = options.api_key or os.environ.get("OPENAI_API_KEY") or ("none" if own else "")
        self._secrets = (self._key, *(self._user or ()))
        self.url = masked(self._address, *self._secrets)  # as it may be shown
        if not self._key:
            raise DualHeadError(
                "OpenAI's endpoint needs a key: set OPENAI_API_KEY. For an endpoint of your own give its address: "
                "openai:MODEL@http://127.0.0.1:8000/v1."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise DualHeadError("The judge's key holds characters that no key has. Copy it again.")
        self._family = load_family(options.template)
        self._pace = Pace(options.requests_per_minute)
        self._sent = threading.local()  # requests for the item that a thread is at, retries included
        asked = [options.temperature, options.seed, options.max_tokens, self._family.identity]
        # Verdicts that were kept before there was a choice stay theirs.
        asked += [] if options.limit == "max_tokens" else [options.limit]
        self.identity = f"openai:{self.name}@{self.url}:{digest(asked)}"

    def require(self, questions: Sequence[Question], kinds: Sequence[str]) -> None:
        """Refuse questions that no template is for."""
        self._family.needed(questions, kinds)

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Verdict]]:
        """Ask which of two answers is better."""
        chosen = [self._family.choose(c.question, "pairwise") for c in comparisons]
        pairs = zip(chosen, comparisons, strict=True)
        yield from self._judge([(t.messages(c.question, c.first, c.second), t.pattern) for t, c in pairs])

    def grade(self, answers: Sequence[tuple[Question, Replies]]) -> Iterator[tuple[int, Verdict]]:
        """Ask for a grade of each answer."""
        chosen = [self._family.choose(question, "single") for question, _ in answers]
        pairs = zip(chosen, answers, strict=True)
        yield from self._judge([(t.messages(*answer), t.pattern) for t, answer in pairs])

    def _judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """Ask for everything, several at once; what is still under way when it has to stop is waited for."""
        client, pool = self._connect(), ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="judge")
        waiting = {pool.submit(self._ask, client, *item): index for index, item in enumerate(items)}
        failures, stop = 0, None
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    index = waiting.pop(future)
                    try:
                        verdict = future.result()
                    except _Stop as error:
                        stop = stop or error
                    else:
                        failures = failures + 1 if verdict.flaw.startswith(NO_ANSWER) else 0
                        if failures >= FAILURES:
                            stop = stop or _Stop(self._down(failures, verdict.flaw))
                        yield index, verdict
                if stop is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    # One that never began is cancelled without a word, and would be waited for.
                    waiting = {future: index for future, index in waiting.items() if not future.cancelled()}
            if stop is not None:
                raise DualHeadError(f"{stop} {AGAIN}") from stop.__cause__
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

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

    def _ask(self, client: Any, messages: list[Message], pattern: Pattern) -> Verdict:
        """Ask once, retries included. Errors: `_Stop` where nobody else would get an answer either."""
        openai, self._sent.requests = self._openai, 0
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=self.name, messages=messages, temperature=self.options.temperature, **self._more(pattern)
            )
        except openai.APITimeoutError:
            return self._without_answer(f"no whole reply came within {self.options.timeout:g} s")
        except openai.APIConnectionError as error:
            why = self._shown(error.__cause__ or error)
            raise _Stop(f"Nobody answers at {self.url} ({why}). Start the endpoint.") from error
        except openai.APIStatusError as error:
            if remedy := self._remedy(error):
                raise _Stop(remedy) from error
            options = " (see the judge's options limit and max_tokens)" if self._about_limit(error) else ""
            return self._without_answer(f"{error.status_code}: {self._brief(error)}{options}")
        except openai.OpenAIError as error:
            return self._without_answer(self._shown(error))
        try:
            completion = raw.parse()
            choice, used = completion.choices[0], self._used(completion.usage)
            said = without(text_of(choice.message.content), *self._secrets)
        except Exception as error:  # whatever reading raises: there is no end to what a server may send
            return self._without_answer(f"what came is no chat completion ({type(error).__name__})")
        try:
            return Verdict(verdict_of(pattern, said, choice.logprobs), said=said, used=used)
        except Unreadable as error:
            cut = f"; it was cut at {self.options.max_tokens} tokens" if choice.finish_reason == "length" else ""
            return Verdict(None, said=said, flaw=f"unparsable: {error}{cut}", used=used)

    def _more(self, pattern: Pattern) -> dict[str, Any]:
        """What not every request has."""
        options = self.options
        more: dict[str, Any] = {} if options.seed is None else {"seed": options.seed}
        if options.limit != "none":
            more[options.limit] = min(options.max_tokens, ALONE_TOKENS) if pattern.alone else options.max_tokens
        if pattern.alone:
            more |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return more

    def _before_request(self) -> None:
        self._sent.requests += 1
        self._pace.take_turn()

    def _without_answer(self, why: str) -> Verdict:
        return Verdict(None, flaw=f"{NO_ANSWER}{why}", used={"requests": float(self._sent.requests)})

    def _used(self, usage: Any) -> dict[str, float]:
        read, wrote = (count_of(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
        used = {"requests": float(self._sent.requests), "input_tokens": read, "output_tokens": wrote}
        prices = (self.options.input_price, self.options.output_price)
        if prices != (None, None):
            used["cost"] = (read * (prices[0] or 0.0) + wrote * (prices[1] or 0.0)) / 1e6
        return used

    def _remedy(self, error: Any) -> str:
        """What to do about an error that everybody would get; "" for one that may be this question's."""
        code, said = error.status_code, self._brief(error)
        if 300 <= code < 400:
            there = self._shown(error.response.headers.get("location", "nowhere"))
            return (
                f"{self.url} sends requests on to {there}, which is not followed. If you trust it, give that address."
            )
        if code in (401, 403):
            return f"{self.url} refuses the key ({code}: {said}). Set OPENAI_API_KEY to one that may use '{self.name}'."
        if code == 404:
            return (
                f"{self.url} knows no model '{self.name}' ({code}: {said}). Check the model's name, and the address: "
                "most end in /v1."
            )
        if code == 429 and getattr(error, "code", None) == "insufficient_quota":
            return f"The account at {self.url} has no credit left ({said})."
        if self._about_limit(error) and any(words in said.lower() for words in NOT_TAKEN):
            limit = self.options.limit
            other = "max_completion_tokens" if limit == "max_tokens" else "max_tokens"
            return (
                f"{self.url} takes no {limit} for '{self.name}' ({code}: {said}). Give the judge's option limit: "
                f"--judge_option limit={other}, or limit=none."
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
        """What the server said."""
        body = error.body
        said = body.get("message") if isinstance(body, dict) else body
        return self._shown(said or error.message)

    def _shown(self, said: Any) -> str:
        """Somebody else's words on one line, short and without our secrets."""
        return " ".join(masked(str(said)[: 20 * BRIEF], *self._secrets).split())[:BRIEF]

    def _down(self, failures: int, flaw: str) -> str:
        last = flaw.removeprefix(NO_ANSWER)
        return (
            f"The endpoint {self.url} is down, or refuses what it is asked: {failures} questions in a row had no "
            f"answer, each after up to {self.options.max_retries} retries (the last one: {last})."
        )


JUDGE = EndpointJudge
