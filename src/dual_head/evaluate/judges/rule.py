"""A rule as judge: the exact reward of the demonstration world, a figure of words alone, or a function of your own."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.judges.base import NoOptions, ScoreJudge, Shown
from dual_head.evaluate.rewards import Reward, called, load_reward
from dual_head.evaluate.systems.identity import sources_digest
from dual_head.evaluate.text_metrics import diversity
from dual_head.model.generate import Prompt
from dual_head.replies import RULES

OWN_RULE = "Name a rule of your own with rule:module:function, called with prompt and reply, which returns a number."


class RuleJudge(ScoreJudge):
    """Scores by a function score(prompt, reply) -> number; without one, by the demonstration world's exact reward.

    where: "module:function", a name of `OF_WORDS` or `RULES`, or "" for the demonstration world. What gives no finite
    number is a flaw of that verdict. Errors: no such function, one that fails, a package that it needs and is not
    installed, a question that is not of the demonstration world.
    """

    form = "rule (the benchmark's), rule:NAME such as rule:concise, or rule:module:function"
    Options = NoOptions

    def __init__(self, where: str, options: NoOptions | None = None):
        del options
        if where:
            names = [*OF_WORDS, *RULES]
            if ":" not in where and where not in names:
                hint = did_you_mean(where, names)
                raise DualHeadError(f"Unknown rule '{where}'.{hint} {OWN_RULE} A reward model is reward:PATH.")
            if where in OF_WORDS:
                self.name, self._rule = where, OF_WORDS[where]
            else:
                self.name, self._rule = load_reward(where if ":" in where else f"rule:{where}")
            sources: list[Any] = [inspect.getmodule(self._rule)]
        else:
            from dual_head.demo import topics, world

            self.name, self._rule = "rule", _demonstration_world
            sources = [world, topics]
        # An edited rule is another rule.
        self.identity = f"rule:{where}:{sources_digest(sources)}"

    def scores(self, shown: Sequence[Shown]) -> Iterator[tuple[int, float | str]]:
        """Score one reply after another."""
        rule: Reward = self._rule
        for index, (prompt, reply) in enumerate(shown):
            number, result = called(self.name, rule, prompt, reply)
            # NaN where it is no number at all
            yield index, number if number == number else f"the rule gave {result!r}, not a number"


def _demonstration_world(prompt: Prompt, reply: str) -> float:
    """Exact reward of one reply, in points."""
    from dual_head.demo.world import parse_request, reward

    text = prompt if isinstance(prompt, str) else f"user : {prompt[-1]['content']} assistant :"
    try:
        request = parse_request(text)
    except DualHeadError:
        raise DualHeadError(
            f"The rule of the demonstration world judges replies to the world's own requests only, not to {text!r}. "
            f"{OWN_RULE}"
        ) from None
    return reward(request, reply).total


def _diverse(_prompt: Prompt, reply: str) -> float:
    return diversity(reply.split())


def _longer(_prompt: Prompt, reply: str) -> float:
    """What a length-controlled rate should expose: the bias of many judges, and nothing else."""
    return len(reply)


OF_WORDS: dict[str, Reward] = {"diverse": _diverse, "longer": _longer}
JUDGE = RuleJudge
