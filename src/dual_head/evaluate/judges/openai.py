"""A language model behind an OpenAI-compatible endpoint as judge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dual_head.backbone.fingerprint import digest
from dual_head.evaluate.endpoints.client import FORM, Endpoint, EndpointOptions, Reply, Request
from dual_head.evaluate.endpoints.completions import first_token
from dual_head.evaluate.judges.base import NO_ANSWER
from dual_head.evaluate.judges.prompted import Item, PromptedJudge
from dual_head.evaluate.judges.prompts import Pattern, Unreadable
from dual_head.evaluate.types import Verdict
from dual_head.options import option

TOP_LOGPROBS = 5  # the most that every endpoint gives
ALONE_TOKENS = 4  # of a reply that is its verdict and nothing else


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(EndpointOptions):
    """How a judge behind an endpoint is asked, beside what every endpoint has.

    template: see `load_family`; max_tokens: of a judge's reply; seed: None where the endpoint takes none.
    """

    template: str = "mt-bench"
    max_tokens: int = option(1024, least=1)
    temperature: float = option(0.0, least=0)
    seed: int | None = 0


class EndpointJudge(PromptedJudge):
    """Asks a model behind an endpoint. where: MODEL, or MODEL@URL.

    A question that has no answer after its retries gets a flaw that begins with `NO_ANSWER`. Errors: as of `Endpoint`.
    """

    form = FORM
    Options = JudgeOptions

    def __init__(self, where: str, options: JudgeOptions | None = None):
        self.options = options = options or JudgeOptions()
        self._endpoint = Endpoint(where, options, noun="judge", flag="--judge_option")
        super().__init__(options.template)
        self.name = self._endpoint.model
        parts: list[Any] = [options.temperature, options.seed, options.max_tokens, self.family.identity]
        # The default adds nothing: verdicts from before the option existed are still found.
        parts += [] if options.limit == "max_tokens" else [options.limit]
        self.identity = f"openai:{self.name}@{self._endpoint.url}:{digest([parts], 16)}"

    def verdicts(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """Ask for everything, several at once."""
        for index, reply in self._endpoint.ask([self._request(*item) for item in items]):
            yield index, self._verdict(items[index][1], reply)

    def _request(self, messages: Any, pattern: Pattern) -> Request:
        options, parameters = self.options, {}
        if pattern.alone:
            parameters = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        tokens = min(options.max_tokens, ALONE_TOKENS) if pattern.alone else options.max_tokens
        return Request(messages, tokens, options.temperature, options.seed, parameters)

    def _verdict(self, pattern: Pattern, reply: Reply) -> Verdict:
        if reply.flaw:
            return Verdict(None, flaw=f"{NO_ANSWER}{reply.flaw}", used=reply.used)
        try:
            return Verdict(_value(pattern, reply), said=reply.text, used=reply.used)
        except Unreadable as error:
            at_limit = reply.choice.finish_reason == "length"
            end = f"; it was cut at {self.options.max_tokens} tokens" if at_limit else ""
            return Verdict(None, said=reply.text, flaw=f"unparsable: {error}{end}", used=reply.used)


def _value(pattern: Pattern, reply: Reply) -> float:
    """The verdict in a reply: from the probabilities of its first token where the endpoint tells them."""
    likely = first_token(reply.choice.logprobs) if pattern.alone else []
    if not likely:
        return pattern.read(reply.text)
    mass = dict.fromkeys(pattern.choices, 0.0)
    for token, probability in likely:
        if token.strip() in mass:
            mass[token.strip()] += probability
    total = sum(mass.values())
    if not total:
        raise Unreadable(f"neither {' nor '.join(mass)} is likely")
    return sum(pattern.choices[choice] * share for choice, share in mass.items()) / total


JUDGE = EndpointJudge
