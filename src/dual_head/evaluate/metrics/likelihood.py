"""How likely a model holds a continuation: log p of given tokens, perplexity, and divergence from another model.

Works for an `AlignedModel` at any strength and for any causal LM. Logits exist only where a continuation's token is
predicted, a chunk at a time.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.backbone.decoder import Decoder
from dual_head.backbone.load import context_length
from dual_head.errors import DualHeadError
from dual_head.evaluate.metrics.continuations import Row, beginning, continuation_ids, fit, windows
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha
from dual_head.model.generate import Prompt
from dual_head.ops.token_scores import DEFAULT_BUDGET, Head, Tokens, eager_bytes, pick_tokens, reduce_tokens

__all__ = ["Likelihood", "context_of", "continuation_logps", "divergences", "perplexity", "score_ids"]

logger = logging.getLogger(__name__)

# Guides' states and strengths, or those and hidden states of a base model.
States = Any
# hidden [n, d], states [n, *] and names to logits {name: [n, V]}
Logits = Callable[[Tensor, States, Collection[str]], dict[str, Tensor]]


class Likelihood(NamedTuple):
    """Sum of log p over a continuation in nats, how many tokens it has, and whether each was the likeliest."""

    logp: float
    tokens: int
    greedy: bool


def continuation_logps(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Prompt, str]],
    *,
    alpha: Alpha = None,
    batch_size: int = 16,
) -> list[Likelihood]:
    """Sum of log p of each continuation given its prompt, in nats.

        log p(y | x) = sum_t log pi(y_t | x, y_<t)

    model: an `AlignedModel` (alpha: one strength for all pairs, as `resolve_alpha` takes it) or a causal LM. A pair
    longer than the context loses the beginning of its prompt. Errors: an empty continuation, or one longer than the
    context; a model in training mode.
    """
    rows = [continuation_ids(prompt, continuation, tokenizer) for prompt, continuation in pairs]
    return score_ids(model, rows, alpha=alpha, batch_size=batch_size)


def perplexity(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    alpha: Alpha = None,
    batch_size: int = 16,
) -> list[float]:
    """exp(-sum_t log p(y_t) / T) of each text, its first token included, in `windows` of the context.

    The token that texts begin with is seen and not scored. Errors: a text without tokens.
    """
    rows: list[Row] = []
    text_of_row: list[int] = []
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise DualHeadError(f"Text {number + 1} has no tokens, so it has no perplexity. Leave it out.")
        text_rows = windows(ids, beginning(tokenizer), context_of(model))
        rows += text_rows
        text_of_row += [number] * len(text_rows)
    logps, counts = [0.0] * len(texts), [0] * len(texts)
    scores = score_ids(model, rows, alpha=alpha, batch_size=batch_size)
    for number, score in zip(text_of_row, scores, strict=True):
        logps[number] += score.logp
        counts[number] += score.tokens
    return [math.exp(-logp / count) for logp, count in zip(logps, counts, strict=True)]


@torch.no_grad()
def score_ids(
    model: Any, rows: Sequence[Row], *, alpha: Alpha = None, batch_size: int = 16, budget: int = DEFAULT_BUDGET
) -> list[Likelihood]:
    """Score the second ids of each row given the first; see `continuation_logps`. budget: bytes of logits at a time."""
    scores = [Likelihood(0.0, 0, True)] * len(rows)
    for indices, batch in _batches(model, rows, batch_size):
        tokens, logits = _forward(model, batch, alpha)
        logps, misses = [], []
        for part in _chunks(tokens, _vocabulary(model), budget):
            z = logits(part.hidden, part.states, ("policy",))["policy"]
            logps.append(z.gather(-1, part.labels[:, None])[:, 0] - z.logsumexp(-1))
            misses.append(z.argmax(-1) != part.labels)
        sums, counts = (_by_row(torch.cat(parts), tokens.row, len(indices)) for parts in (logps, misses))
        for i, logp, count in zip(indices, sums, counts, strict=True):
            scores[i] = Likelihood(logp, len(rows[i][1]), not count)
    return scores


@torch.no_grad()
def divergences(
    model: Any,
    rows: Sequence[Row],
    *,
    base: Any = None,
    alpha: Alpha = None,
    batch_size: int = 16,
    budget: int = DEFAULT_BUDGET,
) -> list[float]:
    """How far a model is from its base along each continuation, in nats.

        sum_t KL(pi(. | x, y_<t) || pi_base(. | x, y_<t))

    base: a causal LM with the same vocabulary; of an `AlignedModel` it is its own backbone where none is given.
    Errors: no base, or one with other logits.
    """
    if base is None and not isinstance(model, AlignedModel):
        raise DualHeadError("A divergence is from a base model, and this one has no backbone. Give base.")
    if base is not None and _vocabulary(base) != _vocabulary(model):
        raise DualHeadError(
            f"The base has {_vocabulary(base)} logits and the model {_vocabulary(model)}: they do not speak of the "
            "same tokens. Give the model it was made of."
        )
    divergences = [0.0] * len(rows)
    for indices, batch in _batches(model, rows, batch_size):
        tokens, logits = _forward(model, batch, alpha)
        if base is not None:
            tokens, logits = _with_base(base, batch, tokens, logits)
        head = Head(logits, lambda products, _: products)
        token_kl = reduce_tokens(tokens, head, ("kl",), budget=budget)["kl"]
        for i, kl in zip(indices, _by_row(token_kl, tokens.row, len(indices)), strict=True):
            divergences[i] = max(kl, 0.0)  # rounding can pass below 0; as the second, NaN would become 0
    return divergences


def context_of(model: Any) -> int | None:
    """How many tokens a model reads at once; None where its config does not say."""
    if isinstance(model, AlignedModel):
        return model.guides.context_length(model.guides)
    return context_length(model.config)


# ---- batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Prompts padded on the left to `prompt` columns, then continuations without their last token: ids, mask [B, T].

        [. p p | c c]        a continuation of three tokens, the last of which is only predicted
        [p p p | . .]        a continuation of one token

    at: places in B T whose logits predict labels; row: the row of each label; all [n].
    """

    ids: Tensor
    mask: Tensor
    prompt: int
    at: Tensor
    labels: Tensor
    row: Tensor

    @property
    def positions(self) -> Tensor:
        """Where each token is in its row, counted from the first that is no padding: [B, T]."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)


def _batches(model: Any, rows: Sequence[Row], batch_size: int) -> Iterator[tuple[list[int], _Batch]]:
    """Rows of similar length together, longest first, so that too little memory shows at once: (row indices, batch)."""
    if model.training:
        raise DualHeadError("The model is in training mode, where dropout moves its numbers. Call model.eval() first.")
    if batch_size < 1:
        raise DualHeadError(f"batch_size must be at least 1, not {batch_size}.")
    context = context_of(model)
    fits = [fit(row, context) for row in rows]
    if cuts := sum(len(new[0]) < len(old[0]) for new, old in zip(fits, rows, strict=True)):
        logger.warning("%d of %d prompts lost their beginning: the context has %s tokens.", cuts, len(rows), context)
    order = sorted(range(len(rows)), key=lambda i: -len(fits[i][0]) - len(fits[i][1]))
    device = model.get_input_embeddings().weight.device
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, _batch([fits[i] for i in indices], device)


def _batch(rows: list[Row], device: torch.device) -> _Batch:
    prompt, longest = (max(len(row[side]) for row in rows) for side in (0, 1))
    width = prompt + longest - 1
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    at, labels, row = [], [], []
    for r, (prompt_ids, continuation) in enumerate(rows):
        inputs = [*prompt_ids, *continuation[:-1]]
        begin = prompt - len(prompt_ids)
        ids[r, begin : begin + len(inputs)] = torch.tensor(inputs)
        mask[r, begin : begin + len(inputs)] = 1
        at += [r * width + prompt - 1 + t for t in range(len(continuation))]
        labels += continuation
        row += [r] * len(continuation)
    columns = (torch.tensor(column, device=device) for column in (at, labels, row))
    return _Batch(ids.to(device), mask.to(device), prompt, *columns)


def _chunks(tokens: Tokens, vocabulary: int, budget: int) -> Iterator[Tokens]:
    size = max(1, budget // eager_bytes(vocabulary))
    for start in range(0, len(tokens.labels), size):
        yield tokens.part(slice(start, start + size))


def _by_row(values: Tensor, row: Tensor, rows: int) -> list[float]:
    """Sum over each row's tokens, in fp64: they are many, and of one sign."""
    return torch.zeros(rows, dtype=torch.float64).index_add(0, row.cpu(), values.cpu().double()).tolist()


# ---- models ----------------------------------------------------------------------------------------------


def _forward(model: Any, batch: _Batch, alpha: Alpha) -> tuple[Tokens, Logits]:
    """Run a model over a batch: what predicts its continuations, and the function that makes logits of it."""
    if isinstance(model, AlignedModel):
        return _forward_aligned(model, batch, alpha)
    if alpha is not None:
        raise DualHeadError("alpha is the strength of guides, and this model has none. Leave it out.")
    decoder = Decoder(model)
    output, _ = decoder(batch.ids, attention_mask=batch.mask, position_ids=batch.positions)
    tokens = pick_tokens(output.last_hidden_state, {}, batch.at, batch.labels, batch.row)
    return tokens, lambda hidden, _states, _names: {"policy": decoder.logits(hidden).float()}


def _forward_aligned(model: AlignedModel, batch: _Batch, alpha: Alpha) -> tuple[Tokens, Logits]:
    acting, strengths = model.resolve_alpha(alpha, len(batch.ids), origin=batch.prompt)
    columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    encoding = model.encode(
        batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        guides=acting.names,
        strengths=(acting, strengths),
        keep=slice(batch.prompt - 1, None),
    )
    alphas = acting.at(strengths.to(batch.ids.device), columns).expand(-1, len(columns), -1)

    def logits(hidden: Tensor, states: States, names: Collection[str]) -> dict[str, Tensor]:
        return model.distributions(hidden, states[0], states[1], names, upcast=True)

    return pick_tokens(encoding.hidden, (encoding.states, alphas), batch.at, batch.labels, batch.row), logits


def _with_base(base: Any, batch: _Batch, tokens: Tokens, logits: Logits) -> tuple[Tokens, Logits]:
    """Run a base model over the same batch, and give its logits as "base" beside the model's."""
    lm = base.backbone.lm if isinstance(base, AlignedModel) else base
    base_tokens, base_logits = _forward(lm, batch, None)

    def pair(hidden: Tensor, states: States, names: Collection[str]) -> dict[str, Tensor]:
        model_states, base_hidden = states
        reference = base_logits(base_hidden, {}, ("policy",))["policy"]
        return {**logits(hidden, model_states, set(names) - {"base"}), "base": reference}

    return replace(tokens, states=(tokens.states, base_tokens.hidden)), pair


def _vocabulary(model: Any) -> int:
    """How many logits a model has."""
    lm: Any = model.backbone.lm if isinstance(model, AlignedModel) else model
    return lm.get_output_embeddings().weight.shape[0]
