"""How far a system is from the model it was made of, along its own last replies: KL and perplexity."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from dual_head.evaluate.metrics.base import Absent, Metric, Tools, Values
from dual_head.evaluate.metrics.continuations import Row, reply_rows
from dual_head.evaluate.metrics.likelihood import divergences, score_ids
from dual_head.evaluate.types import Answer, Question
from dual_head.model.aligned import AlignedModel


def _divergence(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> dict[str, Values]:
    if tools.model is None or (tools.base is None and not isinstance(tools.model, AlignedModel)):
        raise Absent("there is no system's model with a model that it was made of")
    base = None if isinstance(tools.model, AlignedModel) else tools.base
    rows = reply_rows(questions, answers, _tokenizer(tools))
    values = divergences(
        tools.model, [row for row in rows if row], base=base, alpha=tools.alpha, batch_size=tools.batch_size
    )
    sums = _in_place(rows, values)
    means = [kl and kl / len(row[1]) if row else None for kl, row in zip(sums, rows, strict=True)]
    return {"kl": sums, "kl_per_token": means}


def _perplexity(questions: Sequence[Question], answers: Sequence[Answer], tools: Tools) -> Values:
    backbone = tools.model.backbone.lm if isinstance(tools.model, AlignedModel) else None
    base = backbone if tools.base is None else tools.base
    if base is None:
        raise Absent("there is no model that the system was made of")
    rows = reply_rows(questions, answers, _tokenizer(tools))
    scores = score_ids(base, [row for row in rows if row], batch_size=tools.batch_size)
    return _in_place(rows, [float(torch.tensor(-score.logp / score.tokens).exp()) for score in scores])


def _tokenizer(tools: Tools) -> PreTrainedTokenizerBase:
    if tools.tokenizer is None:
        raise Absent("no tokenizer was given")
    return tools.tokenizer


def _in_place(rows: Sequence[Row | None], values: Sequence[float]) -> Values:
    """Put the values of the rows that are there back into their places."""
    rest = iter(values)
    return [None if row is None else next(rest) for row in rows]


METRICS = (
    Metric(
        "kl",
        "divergence of the system from the model it was made of, summed over a reply",
        _divergence,
        unit="nats per reply",
    ),
    Metric(
        "kl_per_token", "divergence of the system from the model it was made of", _divergence, unit="nats per token"
    ),
    Metric(
        "perplexity", "perplexity of a reply under the model that the system was made of", _perplexity, better="lower"
    ),
)
