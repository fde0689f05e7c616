"""Rewards of replies, by models and functions that guided no system; each reads the conversation and its last reply."""

from collections.abc import Sequence

from dual_head.data import Prompt
from dual_head.evaluate.metrics.base import Absent, Metric, Tools, Values
from dual_head.evaluate.metrics.continuations import last_prompt
from dual_head.evaluate.rewards import Reward, RewardModel, called
from dual_head.evaluate.types import Answer, Question


def _rewards(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> dict[str, Values]:
    if not tools.rewards:
        raise Absent("no reward was given")
    pairs = [(last_prompt(q, answer), answer.marked[-1]) for q, answer in zip(questions, answers, strict=True)]
    return {f"reward:{name}": _rewarded(name, reward, pairs, tools) for name, reward in tools.rewards.items()}


def _rewarded(name: str, reward: Reward, pairs: Sequence[tuple[Prompt, str]], tools: Tools) -> Values:
    """Rewards of replies, None where one is no number or the reply is longer than a reward model reads."""
    if not isinstance(reward, RewardModel):
        return [called(name, reward, prompt, reply)[0] for prompt, reply in pairs]
    rows = [reward.encode(prompt, reply) for prompt, reply in pairs]
    values: Values = [None] * len(rows)
    fits = [i for i, row in enumerate(rows) if 0 < len(row) <= reward.context]
    for i, value in zip(fits, reward.score_rows([rows[i] for i in fits], batch_size=tools.batch_size), strict=True):
        values[i] = value
    return values


METRICS = (Metric("reward", "mean reward by a model that did not guide", _rewards, better="higher"),)
