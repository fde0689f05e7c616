"""The vocabulary axis, in chunks: per-token scalars of the base, reward and policy distributions.

The one file that gathers and chunks. A loss names the scalars it needs; one pass computes all of them at the
response positions and nowhere else. No tensor as wide as the vocabulary outlives its chunk. Chunks are whole
pairs, whose loss is known as soon as they are through, so that their gradient is taken at once and no product is
computed twice; only a pair too long for the budget is cut, and then its logits are computed again. It knows
neither guides nor losses.

    policy_logps   log pi(y_t)              reward_logps   log pi_reward(y_t), the guide's own distribution
    base_logps     log pi_base(y_t)         kl             KL(pi || pi_base) in nats, over the vocabulary
    second_kl      KL(pi_second || pi_base), of a second guide that is trained beside the first, by itself
    moved          sum_v |pi(v) - pi_base(v)| / 2, the share of probability that moved (total variation)
    delta_norm     |delta_t|^2 of what the guide adds at alpha = 1, to the logits or to the hidden state
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from dual_head.ops.linear import accumulating
from dual_head.ops.vocab_kernels import SCALARS, Products, reduce_products

# Roughly how many fp32 tensors of a chunk's [tokens, V] are alive at once where nothing is compiled.
LIVE_TENSORS = 8
DEFAULT_BUDGET = 128 * 2**20

States = Any  # a nest of tensors [n, *], as dictionaries of guides' states are: it travels with the tokens it is of


@dataclass(frozen=True)
class Head:
    """What stands between tokens and the logits of the named distributions, in two halves.

    products(hidden [n, d], states, rows): the matrix products [n, V], and weights [n, 1], that distributions are
    combined from, rows = {distribution: of how many first tokens}; products of no others may be as short.
    combine(products, names): their logits [n, V] in fp32, entry by entry. compiled: whether the loops over those
    entries are.
    """

    products: Callable[[Tensor, States, Mapping[str, int]], Products]
    combine: Callable[[Products, frozenset[str]], dict[str, Tensor]]
    compiled: bool = False
    _held: dict[tuple, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def bytes_held(self, tokens: "Tokens", needs: Iterable[str]) -> int:
        """Bytes of logits a token takes while the named scalars are computed and pulled back; 0 for no scalar.

        Compiled: its products, which turn into their gradients. Which ones are made, and in what precision, products
        of no token tell, once.
        """
        rows = dict.fromkeys(sorted(_distributions(needs)), 1)
        kind = tokens.hidden.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (*rows, tokens.hidden.dtype, autocast, torch.is_grad_enabled())
        if rows and key not in self._held:
            none = tokens.part(slice(0))
            products = pytree.tree_leaves(self.products(none.hidden, none.states, rows))
            wide = [x for x in products if x is not None and x.dim() and x.shape[-1] > 1]
            self._held[key] = (
                sum(x.shape[-1] * x.element_size() for x in wide)
                if self.compiled
                else eager_bytes(max(x.shape[-1] for x in wide))
            )
        return self._held[key] if rows else 0


@dataclass(frozen=True)
class Tokens:
    """The n tokens to score: what predicts them (hidden [n, d], states [n, *]), their ids [n] and rows [n].

    chosen: how many come first that are of chosen responses; 0 where they are in another order.
    """

    hidden: Tensor
    states: States
    labels: Tensor
    row: Tensor
    chosen: int = 0

    def tensors(self) -> list[Tensor]:
        """What gradients may flow into: hidden, then the states in their order."""
        return [self.hidden, *pytree.tree_leaves(self.states)]

    def part(self, at: slice) -> "Tokens":
        """Some of them, in no known order of responses."""
        states = pytree.tree_map(lambda x: x[at], self.states)
        return Tokens(self.hidden[at], states, self.labels[at], self.row[at])


@dataclass(frozen=True)
class Scored:
    """Per-token scalars {name: [n]} of pairs; row 2 i is the chosen response of pair i, 2 i + 1 the rejected one."""

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


def split_sides(per_row: Tensor) -> tuple[Tensor, Tensor]:
    """Split [2B, ...] along the responses of B pairs into chosen [B, ...] and rejected [B, ...]."""
    chosen, rejected = per_row.unflatten(0, (-1, 2)).unbind(1)
    return chosen, rejected


def pick_tokens(hidden: Tensor, states: States, at: Tensor, labels: Tensor, row: Tensor) -> Tokens:
    """Pick the positions that predict the tokens to score.

    hidden [R, T, d], states [R, T, *]; at [n]: which of the R T positions; labels, row [n].
    """
    picked = hidden.flatten(0, 1)[at]
    states = pytree.tree_map(lambda x: picked if x is hidden else x.flatten(0, 1)[at], states)
    return Tokens(picked, states, labels, row)


def response_tokens(hidden: Tensor, states: States, input_ids: Tensor, response_mask: Tensor) -> Tokens:
    """Pick the positions that predict a response token: t scores token t + 1 where response_mask[t + 1] is 1.

    hidden [R, T, d], states [R, T, *], input_ids and response_mask [R, T].
    """
    row, at = response_mask[:, 1:].nonzero(as_tuple=True)
    return pick_tokens(hidden, states, row * input_ids.shape[1] + at, input_ids[row, at + 1], row)


def reduce_tokens(
    tokens: Tokens,
    head: Head,
    needs: Iterable[str],
    *,
    first: Mapping[str, int] | None = None,
    measured: frozenset[str] = frozenset(),
    budget: int = DEFAULT_BUDGET,
) -> dict[str, Tensor]:
    """Compute the named scalars {name: [n]} in fp32, at most `budget` bytes of logits at a time.

    first: of how many of the first tokens a scalar is needed, where not of all; it is that long. Gradients flow into
    the states and into whatever parameters `head` uses, except from the scalars in `measured`, which are only to be
    looked at. What exceeds the budget is computed again in the backward pass.
    """
    names = tuple(sorted(set(needs) & SCALARS.keys()))
    if not names:
        return {}
    until = {name: (first or {}).get(name, len(tokens.labels)) for name in names}
    cuts = _chunks(tokens, head, until, budget)
    leaves, spec = pytree.tree_flatten(tokens.states)

    def scalars(start: int, hidden: Tensor, labels: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        rows = {name: min(max(0, until[name] - start), len(labels)) for name in names}
        longest: dict[str, int] = {}
        for name in names:
            longest |= {which: max(rows[name], longest.get(which, 0)) for which in SCALARS[name].reads if rows[name]}
        products = head.products(hidden, pytree.tree_unflatten(states, spec), longest)
        return reduce_products(
            products, labels, head.combine, names, rows=rows, measured=measured, compiled=head.compiled
        )

    chunks = []
    for at in cuts:
        inputs = (tokens.hidden[at], tokens.labels[at], *(x[at] for x in leaves))
        if torch.is_grad_enabled() and len(cuts) > 1:
            chunks.append(checkpoint(scalars, at.start, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(scalars(at.start, *inputs))
    columns = zip(*chunks, strict=True) if chunks else [[tokens.hidden.new_zeros(0, dtype=torch.float32)]] * len(names)
    return {name: torch.cat(list(column)) for name, column in zip(names, columns, strict=True)}


def _distributions(needs: Iterable[str]) -> set[str]:
    """What the named scalars are computed from."""
    return set().union(*(SCALARS[name].reads for name in needs if name in SCALARS))


def _chunks(tokens: Tokens, head: Head, until: Mapping[str, int], budget: int) -> list[slice]:
    """All tokens at once, where the budget holds their logits; or fewer, which the same scalars are read of.

    until: of how many first tokens each scalar is read.
    """
    parts = []
    for start, stop in pairwise(sorted({0, *until.values()})):
        names = [name for name, end in until.items() if end >= stop]
        parts.append((start, stop, max(1, head.bytes_held(tokens, names))))
    if sum((stop - start) * held for start, stop, held in parts) <= budget:
        return [slice(0, max(until.values()))] if parts else []
    chunks = []
    for start, stop, held in parts:
        count = math.ceil((stop - start) / max(1, budget // held))
        size = math.ceil((stop - start) / count)
        chunks += [slice(i, min(stop, i + size)) for i in range(start, stop, size)]
    return chunks


def auto_budget(vocab_size: int, hidden_size: int, *, kept: int = 0) -> int:
    """Bytes of logits at a time, 7 V d but at least 128 MiB, less what else is kept beside them.

    7 V d are two fp32 logits of 7 d / 8 tokens; fewer would spend the step on adding up gradients as large as the head.
    """
    return max(DEFAULT_BUDGET - kept, 7 * vocab_size * hidden_size)


def eager_bytes(vocab_size: int) -> int:
    """Bytes of logits a token takes where element-wise work leaves fp32 copies."""
    return 4 * LIVE_TENSORS * vocab_size


@dataclass(frozen=True)
class Group:
    """Pairs first, first + 1, ... and their tokens [start, stop), the first `chosen` of them of chosen responses."""

    first: int
    pairs: int
    start: int
    stop: int
    chosen: int


def groups_of(counts: Sequence[int], budget: int, *, chosen_bytes: int, rejected_bytes: int) -> list[Group]:
    """As many whole pairs at a time as fit into the budget, in bytes of logits; a longer one is alone.

    counts: [2B], how many tokens each response has; chosen_bytes, rejected_bytes: what one token of it takes.
    """
    groups: list[Group] = []
    held = math.inf
    for i, (chosen, rejected) in enumerate(zip(counts[::2], counts[1::2], strict=True)):
        count, size = chosen + rejected, chosen * chosen_bytes + rejected * rejected_bytes
        held += size
        if held <= budget:
            last = groups[-1]
            groups[-1] = Group(last.first, last.pairs + 1, last.start, last.stop + count, last.chosen + chosen)
        else:
            held, start = size, groups[-1].stop if groups else 0
            groups.append(Group(i, 1, start, start + count, chosen))
    return groups


def group_order(groups: Sequence[Group], row: Tensor) -> Tensor:
    """In which order tokens [n] of these rows are group by group, in each chosen responses before rejected ones.

    pair by pair   [c0 c0 c0 r0 r0 | c1 r1 r1 | c2 c2 r2]      three pairs
    in groups      [c0 c0 c0 c1 | r0 r0 r1 r1] [c2 c2 | r2]    pairs 0 and 1 fit together; of r, fewer scalars
    """
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor([group.pairs for group in groups]))
    return (2 * group.to(row.device)[row // 2] + row % 2).argsort(stable=True)


def by_pairs(
    tokens: Tokens,
    groups: Sequence[Group],
    loss_of: Callable[[Tokens, int], dict[str, Tensor]],
    parameters: Iterable[Tensor],
) -> dict[str, Tensor]:
    """Sum a loss over groups of whole pairs, with the gradient of each group taken before the next begins.

        loss = sum over groups of loss_of(tokens of the group, how many pairs)["loss"]

    tokens: group by group, in each chosen responses before rejected ones, see `group_order`; loss_of gives "loss" []
    and metrics [pairs]; parameters: what the loss depends on besides the tokens. Gives the loss, ready for one
    backward, and the metrics of all pairs.

        group 0   logits [8, V] -> loss_0 -> gradients taken, added to `total`; logits freed
        group 1   logits [3, V] -> loss_1 -> the same
        backward  d loss = 1: `total` as it is; else times that number, in its own memory
    """
    if not torch.is_grad_enabled():
        outs = [
            loss_of(_part(tokens, group, [x[group.start : group.stop] for x in tokens.tensors()]), group.pairs)
            for group in groups
        ]
        return {name: _join(name, [out[name] for out in outs]) for name in outs[0]}
    leaves = [x for x in parameters if x.requires_grad]
    names: list[str] = []
    out = _ByPairs.apply(tokens, groups, loss_of, names, len(leaves), *leaves, *tokens.tensors())
    return dict(zip(names, out, strict=True))  # type: ignore[arg-type]


class _ByPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tokens, groups: list, loss_of: Any, names: list[str], count: int, *tensors: Tensor):
        leaves, carriers = tensors[:count], tensors[count:]
        total: list[Tensor | None] = [None] * count
        per_token: list[list[Tensor]] = [[] for _ in carriers]
        outs = []
        with accumulating(leaves) as sinks:
            for group in groups:
                parts = [x[group.start : group.stop].detach().requires_grad_(x.requires_grad) for x in carriers]
                moving = [i for i, x in enumerate(parts) if x.requires_grad]
                with torch.enable_grad():
                    out = loss_of(_part(tokens, group, parts), group.pairs)
                outs.append({name: x.detach() for name, x in out.items()})
                if not out["loss"].requires_grad:
                    continue
                sources = [*leaves, *(parts[i] for i in moving)]
                grads = torch.autograd.grad(out.pop("loss"), sources, allow_unused=True)
                total = [_added(a, b) for a, b in zip(total, grads, strict=False)]
                for i, grad in zip(moving, grads[count:], strict=True):
                    per_token[i].append(torch.zeros_like(parts[i]) if grad is None else grad)
        total = [_added(a, sink.total) for a, sink in zip(total, sinks, strict=True)]
        ctx.grads = [*total, *(torch.cat(grads) if grads else None for grads in per_token)]
        names.extend(outs[0])
        joined = tuple(_join(name, [out[name] for out in outs]) for name in names)
        ctx.mark_non_differentiable(*joined[1:])
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any):
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("The gradients of this loss were taken already; compute the loss again.")
        # Without scaling or accumulation it is 1, which on a CPU is cheaper to see than to multiply by.
        if grad.device.type != "cpu" or grad != 1:
            for x in grads:
                if x is not None:
                    x.mul_(grad)
        return (None, None, None, None, None, *grads)


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return total if more is None else more if total is None else total.add_(more)


def _part(tokens: Tokens, group: Group, tensors: Sequence[Tensor]) -> Tokens:
    """The tokens of one group, with hidden and states from `tensors`, and rows counted from its first pair."""
    at = slice(group.start, group.stop)
    hidden, *states = tensors
    states = pytree.tree_unflatten(states, pytree.tree_structure(tokens.states))
    return Tokens(hidden, states, tokens.labels[at], tokens.row[at] - 2 * group.first, group.chosen)


def _join(name: str, parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if name == "loss" else torch.cat(parts)
