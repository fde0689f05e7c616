"""The vocabulary axis, in chunks: per-token scalars of the base, reward and policy distributions.

The one file that shifts, masks, gathers and chunks. A loss names the scalars it needs; one pass computes all
of them at the response positions and nowhere else. No tensor as wide as the vocabulary outlives its chunk:
the backward pass computes a chunk's logits again. It knows neither guides nor losses.

    policy_logps   log pi(y_t)              reward_logps   log pi_reward(y_t), the guide's own distribution
    base_logps     log pi_base(y_t)         kl             KL(pi || pi_base) in nats, over the vocabulary
    base_head_kl   KL(pi_base_head || pi_base), of a base head trained beside the guide
    moved          sum_v |pi(v) - pi_base(v)| / 2, the share of probability that moved (total variation)
    delta_norm     |delta_t|^2 of what the guide adds at alpha = 1, to the logits or to the hidden state
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dual_head.data.collate import split_sides

# What each scalar is computed from.
DISTRIBUTIONS = {
    "policy_logps": {"policy"},
    "reward_logps": {"reward"},
    "base_logps": {"base"},
    "kl": {"policy", "base"},
    "base_head_kl": {"base_head", "base"},
    "moved": {"policy", "base"},
    "delta_norm": {"delta"},
}
# Roughly how many fp32 tensors of a chunk's [tokens, V] are alive at once, forward and backward.
LIVE_TENSORS = 8
DEFAULT_BUDGET = 128 * 2**20

# (hidden [n, d], states {name: [n, *]}, names) -> logits [n, V] of the named distributions, in fp32
Head = Callable[[Tensor, dict[str, Tensor], frozenset[str]], dict[str, Tensor]]


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
    budget: int = DEFAULT_BUDGET,
) -> dict[str, Tensor]:
    """Compute the named scalars {name: [n]} in fp32, at most `budget` bytes of logits at a time.

    Gradients flow into the states and into whatever parameters `head` uses, except from the scalars in
    `measured`, which are only to be looked at.
    """
    wanted = tuple(sorted(set(needs) & DISTRIBUTIONS.keys()))
    if not wanted:
        return {}
    distributions = frozenset().union(*(DISTRIBUTIONS[name] for name in wanted))
    size = max(1, budget // (vocab_size * 4 * LIVE_TENSORS))
    names = tuple(tokens.states)

    def scalars(hidden: Tensor, labels: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        z = head(hidden, dict(zip(names, states, strict=True)), distributions)
        return _scalars(z, labels, wanted, measured)

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
    z: dict[str, Tensor], labels: Tensor, wanted: tuple[str, ...], measured: frozenset[str]
) -> tuple[Tensor, ...]:
    norms = {name: logits.logsumexp(-1) for name, logits in z.items() if name != "delta"}
    out: dict[str, Tensor] = {}
    for name in wanted:
        if name == "delta_norm":
            out[name] = z["delta"].float().square().sum(-1)
        elif name == "moved":
            out[name] = (z["policy"].softmax(-1) - z["base"].softmax(-1)).abs().sum(-1) / 2
        elif name in ("kl", "base_head_kl"):
            which = "policy" if name == "kl" else "base_head"
            policy, norm = z[which], norms[which]
            if name in measured:  # detached before the sum, so that what is only looked at keeps no graph
                policy, norm = policy.detach(), norm.detach()
            # The constants leave the sum: sum_v p_v (z_v - zbase_v) - (lse - lse_base).
            out[name] = ((policy - norm[:, None]).exp() * (policy - z["base"])).sum(-1) - (norm - norms["base"])
        else:
            (distribution,) = DISTRIBUTIONS[name]
            out[name] = _pick(z[distribution], labels) - norms[distribution]
    return tuple(out[name].detach() if name in measured else out[name] for name in wanted)


def _pick(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(-1, labels[:, None])[:, 0]
