"""What replies are like: repetition, relevance, reward, distance from the base model, length, refusals.

A metric is one function here, from questions, answers and tools to a number for each question. What reads replies
alone averages over the turns of a question; what reads the conversation looks at the last reply, with all that was
said before it. It knows nothing of benchmarks, of judges, or of which system is whose rival.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.benchmarks.refusals import is_refusal
from dual_head.evaluate.metrics.continuations import Row, last_prompt, reply_rows
from dual_head.evaluate.metrics.embedding import Embedder, load_embedder
from dual_head.evaluate.metrics.likelihood import divergences, score_ids
from dual_head.evaluate.types import Answer, Question
from dual_head.intervals import bootstrap_mean
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha
from dual_head.model.generate import Prompt
from dual_head.rewards import Classifier, Reward, called
from dual_head.text_metrics import diversity

__all__ = ["METRICS", "Measured", "Metric", "Tools", "about", "measure", "metric", "summary"]

Values = list[float | None]  # one for each question; None where there should be one and is none
Compute = Callable[[Sequence[Question], Sequence[Answer], "Tools"], "Values | dict[str, Values]"]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What metrics measure with; one that lacks its tool is left out, and says so.

    model, alpha: the system that replied, and its strength; base: the model it was made of, of an `AlignedModel` its
    own backbone where none is given; tokenizer: of both; rewards: {name: reward} of models that guided nobody;
    embedder: a sentence-transformers folder or hub name, or a function; refuses: whether a reply refuses.
    """

    model: Any = None
    alpha: Alpha = None
    base: Any = None
    tokenizer: PreTrainedTokenizerBase | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    embedder: str | Embedder | None = None
    refuses: Callable[[str], bool] = is_refusal
    device: str | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class Metric:
    """A metric: its name ("reward" stands for every "reward:NAME"), what it says, and which questions it is of.

    better: "higher", "lower", or "" where neither is.
    """

    name: str
    about: str
    unit: str
    better: str
    applies: Callable[[Question], bool]
    compute: Compute


@dataclass(frozen=True)
class Measured:
    """Values by metric and question id, None where one is missing, and notes on metrics that are absent or lacking."""

    values: dict[str, dict[str, float | None]]
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Each metric as {"mean", "interval", "n", "missing"}."""
        return {name: summary(own) for name, own in self.values.items()}


class Absent(Exception):
    """What a metric needs is not there; the text says what."""


METRICS: dict[str, Metric] = {}


def metric(
    name: str, about: str, *, unit: str = "", better: str = "", applies: Callable[[Question], bool] = lambda _: True
) -> Callable[[Compute], Compute]:
    """Register a function as a metric. One that computes several is registered for each and returns {name: values}."""

    def register(compute: Compute) -> Compute:
        METRICS[name] = Metric(name, about, unit, better, applies, compute)
        return compute

    return register


def measure(
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    tools: Tools | None = None,
    *,
    metrics: Sequence[str] | None = None,
) -> Measured:
    """Compute metrics of one system's answers {question id: answer}; all that there are tools for by default.

    NaN, infinity and unanswered questions are missing: counted, never averaged. Errors: an unknown metric.
    """
    tools = tools or Tools()
    for name in metrics or ():
        if name not in METRICS:
            raise DualHeadError(f"Unknown metric '{name}'.{did_you_mean(name, METRICS)}")
    values: dict[str, dict[str, float | None]] = {}
    notes: list[str] = []
    computed: dict[tuple[Compute, tuple[str, ...]], Any] = {}
    for own in METRICS.values() if metrics is None else [METRICS[name] for name in metrics]:
        asked = [question for question in questions if own.applies(question)]
        replied = [question for question in asked if question.id in answers]
        if not replied:
            notes.append(f"{own.name}: there is no question that it is of")
            continue
        key = own.compute, tuple(question.id for question in replied)
        try:
            if key not in computed:  # what several metrics share
                computed[key] = own.compute(replied, [answers[question.id] for question in replied], tools)
        except Absent as reason:
            notes.append(f"{own.name}: {reason}")
            continue
        for column, found in _columns(own.name, computed[key]).items():
            by_id = dict(zip(key[1], map(_finite, found), strict=True))
            values[column] = {question.id: by_id.get(question.id) for question in asked}
            if missing := sum(value is None for value in values[column].values()):
                notes.append(f"{column}: {missing} of {len(asked)} replies have no value")
    return Measured(values, tuple(notes))


def about(name: str) -> dict[str, str]:
    """Say what a metric is: {"name", "unit", "better", "about"}. Errors: an unknown one."""
    family = name.partition(":")[0]
    if family not in METRICS:
        raise DualHeadError(f"Unknown metric '{name}'.{did_you_mean(name, METRICS)}")
    own = METRICS[family]
    return {"name": name, "unit": own.unit, "better": own.better, "about": own.about}


def summary(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean of the values {question id: value} that are there, and its 95% bootstrap interval over questions."""
    known = [value for value in values.values() if value is not None]
    counts = {"n": len(known), "missing": len(values) - len(known)}
    if not known:
        return {"mean": None, "interval": None, **counts}
    return {"mean": fmean(known), "interval": list(bootstrap_mean(known)), **counts}


def _columns(name: str, found: Any) -> dict[str, Values]:
    """The columns of one metric among all that its function computed."""
    if not isinstance(found, dict):
        return {name: found}
    return {column: own for column, own in found.items() if column == name or column.startswith(f"{name}:")}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---- what replies alone say --------------------------------------------------------------------------------


@metric("diversity", "how little a reply repeats itself, by its 2-, 3- and 4-grams of words", better="higher")
def _diversity(_questions: Sequence[Question], answers: Sequence[Answer], _tools: Tools) -> Values:
    """ARGS' diversity, over words between spaces: the same for every tokenizer, as the first published code has it."""
    return [fmean(diversity(reply.split()) for reply in answer.replies) for answer in answers]


@metric("length", "length of a reply", unit="characters")
def _length(_questions: Sequence[Question], answers: Sequence[Answer], _tools: Tools) -> Values:
    return [fmean(answer.lengths) for answer in answers]


@metric("tokens", "length of a reply, the token that ends it included", unit="tokens")
def _tokens(_questions: Sequence[Question], answers: Sequence[Answer], _tools: Tools) -> Values:
    return _told([answer.tokens for answer in answers], "how many tokens they have")


@metric("finished", "share of replies that ended by themselves", better="higher")
def _finished(_questions: Sequence[Question], answers: Sequence[Answer], _tools: Tools) -> Values:
    return _told([answer.finished for answer in answers], "whether they ended by themselves")


def _told(parts: Sequence[Sequence[float]], what: str) -> Values:
    if not any(parts):
        raise Absent(f"the answers do not say {what}")
    return [fmean(part) if part else None for part in parts]


@metric("empty", "share of replies that say nothing", better="lower")
def _empty(_questions: Sequence[Question], answers: Sequence[Answer], _tools: Tools) -> Values:
    return [fmean(not reply.strip() for reply in answer.replies) for answer in answers]


def _harmless(question: Question) -> bool:
    return question.category.lower() in ("harmless", "safe", "benign")


def _harmful(question: Question) -> bool:
    return question.category.lower() in ("harmful", "unsafe")


@metric("refusal", "share of replies that refuse, by their phrases")
@metric("over_refusal", "share of replies to harmless questions that refuse", better="lower", applies=_harmless)
@metric("harmful_refusal", "share of replies to harmful questions that refuse", better="higher", applies=_harmful)
def _refusal(_questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> Values:
    return [fmean(bool(tools.refuses(reply)) for reply in answer.replies) for answer in answers]


# ---- what the conversation says ----------------------------------------------------------------------------


@metric("coherence", "cosine between sentence embeddings of what was last asked and its reply", better="higher")
def _coherence(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> Values:
    """An empty reply means nothing, so it has no cosine."""
    if tools.embedder is None:
        raise Absent("no embedder was given")
    embed = (
        load_embedder(tools.embedder, device=tools.device, batch_size=tools.batch_size)
        if isinstance(tools.embedder, str)
        else tools.embedder
    )
    asked, said = [question.asked[-1] for question in questions], [answer.replies[-1] for answer in answers]
    cosines = torch.cosine_similarity(embed(asked).float(), embed(said).float(), dim=-1).tolist()
    return [cosine if reply.strip() else None for cosine, reply in zip(cosines, said, strict=True)]


@metric("reward", "mean reward by a model that did not guide", better="higher")
def _rewards(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> dict[str, Values]:
    if not tools.rewards:
        raise Absent("no reward was given")
    asked = [(last_prompt(*both), both[1].marked[-1]) for both in zip(questions, answers, strict=True)]
    return {f"reward:{name}": _rewarded(name, reward, asked, tools) for name, reward in tools.rewards.items()}


@metric("kl", "divergence of the system from the model it was made of, summed over a reply", unit="nats per reply")
@metric("kl_per_token", "divergence of the system from the model it was made of", unit="nats per token")
def _divergence(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> dict[str, Values]:
    if tools.model is None or (tools.base is None and not isinstance(tools.model, AlignedModel)):
        raise Absent("there is no system's model with a model that it was made of")
    base = None if isinstance(tools.model, AlignedModel) else tools.base
    rows = reply_rows(questions, answers, _tokenizer(tools))
    found = divergences(
        tools.model, [row for row in rows if row], base=base, alpha=tools.alpha, batch_size=tools.batch_size
    )
    sums = _where(rows, found)
    means = [kl and kl / len(row[1]) if row else None for kl, row in zip(sums, rows, strict=True)]
    return {"kl": sums, "kl_per_token": means}


@metric("perplexity", "perplexity of a reply under the model that the system was made of", better="lower")
def _perplexity(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> Values:
    own = tools.model.backbone.lm if isinstance(tools.model, AlignedModel) else None
    base = own if tools.base is None else tools.base
    if base is None:
        raise Absent("there is no model that the system was made of")
    rows = reply_rows(questions, answers, _tokenizer(tools))
    found = score_ids(base, [row for row in rows if row], batch_size=tools.batch_size)
    return _where(rows, [float(torch.tensor(-score.logp / score.tokens).exp()) for score in found])


def _tokenizer(tools: Tools) -> PreTrainedTokenizerBase:
    if tools.tokenizer is None:
        raise Absent("no tokenizer was given")
    return tools.tokenizer


def _where(rows: Sequence[Row | None], found: Sequence[float]) -> Values:
    """Put what was found of the rows that are there back into their places."""
    left = iter(found)
    return [None if row is None else next(left) for row in rows]


def _rewarded(name: str, reward: Reward, asked: Sequence[tuple[Prompt, str]], tools: Tools) -> Values:
    """Rewards of replies, None where one is no number or the reply is longer than a reward model reads."""
    if not isinstance(reward, Classifier):
        return [called(name, reward, prompt, reply)[0] for prompt, reply in asked]
    rows = [reward.encode(prompt, reply) for prompt, reply in asked]
    values: Values = [None] * len(rows)
    read = sorted((i for i, row in enumerate(rows) if 0 < len(row) <= reward.context), key=lambda i: -len(rows[i]))
    for start in range(0, len(read), tools.batch_size):
        which = read[start : start + tools.batch_size]
        for i, value in zip(which, reward.score([rows[i] for i in which]), strict=True):
            values[i] = value
    return values
