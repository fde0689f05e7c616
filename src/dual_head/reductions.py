"""The vocabulary axis, in chunks: per-token scalars of the base, reward and policy distributions.

The one file that shifts, masks, gathers and chunks. A loss names the scalars it needs; one pass computes all
of them at the response positions and nowhere else. No tensor as wide as the vocabulary outlives its chunk:
the backward pass computes a chunk's logits again. It knows neither guides nor losses.

    policy_logps   log pi(y_t)              reward_logps   log softmax(z_base + direction)(y_t)
    base_logps     log pi_base(y_t)         kl             KL(pi || pi_base) in nats, over the vocabulary
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dual_head.data.collate import split_sides
from dual_head.fusion import Term, fuse

VOCABULARY_SCALARS = frozenset({"policy_logps", "reward_logps", "base_logps", "kl"})
# Roughly how many fp32 tensors of a chunk's [tokens, V] are alive at once, forward and backward.
LIVE_TENSORS = 8
DEFAULT_BUDGET = 128 * 2**20

# (hidden [n, d], states {name: [n, *]}) -> base logits [n, V] and the guide's term at alpha = 1
Head = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, Term]]


@dataclass(frozen=True)
class Tokens:
    """The n tokens to score: what predicts them (hidden [n, d], states), their ids [n] and rows [n]."""

    hidden: Tensor
    states: dict[str, Tensor]
    labels: Tensor
    row: Tensor


@dataclass(frozen=True)
class Scored:
    """Per-token scalars {name: [n]} of a batch of pairs; rows 0..B-1 are chosen, B..2B-1 rejected."""

    values: dict[str, Tensor]
    row: Tensor
    pairs: int

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def sums(self, name: str) -> tuple[Tensor, Tensor]:
        """Sum over each response's tokens: (chosen [B], rejected [B])."""
        return split_sides(self._add(self.values[name].float()))

    def means(self, name: str) -> tuple[Tensor, Tensor]:
        """Average over each response's tokens: (chosen [B], rejected [B]); 0 for an empty response."""
        chosen, rejected = self.sums(name)
        of_chosen, of_rejected = split_sides(self.lengths().clamp_min(1))
        return chosen / of_chosen, rejected / of_rejected

    def lengths(self) -> Tensor:
        """Count each row's response tokens, [2B] in fp32."""
        return self._add(torch.ones_like(self.row, dtype=torch.float32))

    def _add(self, values: Tensor) -> Tensor:
        return values.new_zeros(2 * self.pairs).index_add(0, self.row, values)


def response_tokens(hidden: Tensor, states: dict[str, Tensor], input_ids: Tensor, response_mask: Tensor) -> Tokens:
    """Pick the positions that predict a response token: t scores token t + 1 where response_mask[t + 1] is 1.

    hidden [R, T, d], states {name: [R, T, *]}, input_ids and response_mask [R, T].
    """
    row, at = response_mask[:, 1:].nonzero(as_tuple=True)
    return Tokens(
        hidden=hidden[row, at],
        states={name: x[row, at] for name, x in states.items()},
        labels=input_ids[row, at + 1],
        row=row,
    )


def reduce_tokens(
    tokens: Tokens,
    head: Head,
    needs: Iterable[str],
    *,
    measured: frozenset[str] = frozenset(),
    vocab_size: int,
    fusion: str = "logits",
    budget: int = DEFAULT_BUDGET,
) -> dict[str, Tensor]:
    """Compute the named scalars {name: [n]} in fp32, at most `budget` bytes of logits at a time.

    Gradients flow into the states and into whatever parameters `head` uses, except from the scalars in
    `measured`, which are only to be looked at.
    """
    wanted = tuple(sorted(set(needs) & VOCABULARY_SCALARS))
    if not wanted:
        return {}
    size = max(1, budget // (vocab_size * 4 * LIVE_TENSORS))
    names = tuple(tokens.states)

    def scalars(hidden: Tensor, labels: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        base, term = head(hidden, dict(zip(names, states, strict=True)))
        return _scalars(base.float(), term, labels, wanted, measured, fusion)

    chunks = []
    for start in range(0, len(tokens.labels), size):
        at = slice(start, start + size)
        inputs = (tokens.hidden[at], tokens.labels[at], *(x[at] for x in tokens.states.values()))
        if torch.is_grad_enabled():
            chunks.append(checkpoint(scalars, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(scalars(*inputs))
    columns = zip(*chunks, strict=True) if chunks else [[tokens.hidden.new_zeros(0, dtype=torch.float32)]] * len(wanted)
    return {name: torch.cat(list(column)) for name, column in zip(wanted, columns, strict=True)}


def _scalars(
    base: Tensor, term: Term, labels: Tensor, wanted: tuple[str, ...], measured: frozenset[str], fusion: str
) -> tuple[Tensor, ...]:
    weight, direction = term[0], term[1].float()
    out: dict[str, Tensor] = {}
    base_norm = base.logsumexp(-1)
    if "base_logps" in wanted:
        out["base_logps"] = _pick(base, labels) - base_norm
    if "reward_logps" in wanted:
        reward = base + direction
        out["reward_logps"] = _pick(reward, labels) - reward.logsumexp(-1)
    if "policy_logps" in wanted or "kl" in wanted:
        policy = fuse(base, [(weight, direction)], fusion)
        policy_norm = policy.logsumexp(-1)
        if "policy_logps" in wanted:
            out["policy_logps"] = _pick(policy, labels) - policy_norm
        if "kl" in wanted:
            # Detached before the sum, so that what is only looked at keeps no graph.
            z, norm = (policy.detach(), policy_norm.detach()) if "kl" in measured else (policy, policy_norm)
            # The constants leave the sum: sum_v p_v (z_v - zbase_v) - (lse - lse_base).
            out["kl"] = ((z - norm[:, None]).exp() * (z - base)).sum(-1) - (norm - base_norm)
    return tuple(out[name].detach() if name in measured else out[name] for name in wanted)


def _pick(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(-1, labels[:, None])[:, 0]
