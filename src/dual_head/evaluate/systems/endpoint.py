"""A model behind an OpenAI-compatible endpoint as a system: openai:MODEL, openai:MODEL@URL, or a URL.

A server of guides takes strengths as any folder of guides does: URL@1.5, or URL@helpful:0.5+harmless:1.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dual_head.backbone.fingerprint import digest
from dual_head.data import Message
from dual_head.errors import DualHeadError
from dual_head.evaluate.endpoints.client import Endpoint, EndpointOptions, Reply, Request
from dual_head.evaluate.systems.base import LoadOptions, System
from dual_head.evaluate.systems.specs import ENDPOINT, SystemSpec
from dual_head.evaluate.types import Answer, Decoding, Question
from dual_head.options import build

logger = logging.getLogger(__name__)


class EndpointSystem(System):
    """Answers conversations by requests. Its identity is its name and address, as its weights are not known.

    Errors: as of `Endpoint`.
    """

    chats = True  # the protocol has messages alone
    remote = True

    def __init__(self, spec: SystemSpec, load: LoadOptions):
        options = build(EndpointOptions, dict(load.endpoint_options))
        self.at_once = options.concurrency
        where = spec.path.removeprefix(ENDPOINT) if spec.path.startswith(ENDPOINT) else f"@{spec.path}"
        self._endpoint = Endpoint(where, options, noun="system", flag="--endpoint_option")
        self._alpha = spec.alpha
        super().__init__(spec, load)
        self.path = f"{ENDPOINT}{self._endpoint.model}@{self._endpoint.url}"  # without a password

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether it begins with "openai:", or is an address."""
        return path.startswith((ENDPOINT, "http://", "https://"))

    def strengths(self, spec: SystemSpec) -> dict[str, float]:
        """Those that are given; a number is for all guides, whose names the server alone knows."""
        if spec.alpha is None:
            return {}
        return dict(spec.alpha) if isinstance(spec.alpha, Mapping) else {"all": spec.alpha}

    @property
    def identity(self) -> str:
        """Digest of the model's name, the address, the strengths and how its replies are limited."""
        content: list[Any] = [self.path, self._endpoint.options.limit]
        return digest(content if self._alpha is None else [*content, dict(self.alpha)])

    def check(self, decoding: Decoding) -> None:
        """Errors: top_k, which the protocol lacks."""
        if decoding.top_k:
            raise DualHeadError(f"'{self.name}' is behind an endpoint, which takes no top_k. Leave it out.")

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Say that a text is not a conversation; how long one may be, the endpoint says when it is asked."""
        del decoding
        return f"'{self.name}' answers conversations, and it is a text (--chat)" if _is_text(question) else None

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[Answer]:
        """Answer one batch, each turn of all of its questions at once; what has no reply in the end is left out.

        Errors: as of `Endpoint.ask`, after the answers that were whole by then.
        """
        talks: dict[str, list[Message]] = {question.id: [] for question in questions}
        replies: dict[str, list[Reply]] = {question.id: [] for question in questions}
        rest = list(questions)
        try:
            for turn in range(max((len(question.asked) for question in questions), default=0)):
                batch = [question for question in rest if turn < len(question.asked)]
                for question in batch:
                    talks[question.id] += _messages(question, turn, replies[question.id])
                requests = [self._request(talks[question.id], decoding) for question in batch]
                for index, reply in self._endpoint.ask(requests):
                    if reply.flaw:
                        # A filter of contents refuses a question for good, and the others are worth having.
                        rest.remove(batch[index])
                        name = batch[index].id
                        logger.warning("%r gave no reply to the question %r: %s.", self.name, name, reply.flaw)
                        continue
                    replies[batch[index].id].append(reply)
        finally:
            for question in rest:
                if len(replies[question.id]) == len(question.asked):
                    yield _answer(question.id, replies[question.id])

    def _request(self, talk: Sequence[Message], decoding: Decoding) -> Request:
        parameters: dict[str, Any] = {"top_p": decoding.top_p} if decoding.temperature else {}
        # Greedy replies are kept whatever the seed is, and some servers refuse one.
        seed = decoding.seed if decoding.temperature else None
        limits = (decoding.max_new_tokens, decoding.temperature, seed)
        return Request(list(talk), *limits, parameters, alpha=self._alpha)


def _is_text(question: Question) -> bool:
    return isinstance(question.prompt, str)


def _messages(question: Question, turn: int, replies: Sequence[Reply]) -> list[Message]:
    """What a turn adds to the talk."""
    if not turn:
        assert not isinstance(question.prompt, str)
        return list(question.prompt)
    reply: Message = {"role": "assistant", "content": replies[-1].text.strip()}
    return [reply, {"role": "user", "content": question.asked[turn]}]


def _answer(name: str, replies: Sequence[Reply]) -> Answer:
    tokens = tuple(int(reply.used["output_tokens"]) for reply in replies)
    return Answer(
        question=name,
        replies=tuple(reply.text.strip() for reply in replies),
        tokens=tokens if all(tokens) else (),
        finished=tuple(reply.choice.finish_reason != "length" for reply in replies),
    )


SYSTEM = EndpointSystem
