"""The vocabulary axis, in chunks: per-token scalars of the base, reward and policy distributions.

A loss names the scalars it needs, see `scalars`; one pass computes all of them at the response positions and nowhere
else. No tensor as wide as the vocabulary outlives its chunk. Tokens beyond the budget are cut, and then their logits
are computed again in the backward pass; `pair_groups` gives whole pairs that the budget holds. It knows neither guides
nor losses.

    row            [ p p p | r r r e ]        a sequence: its prompt, its reply
    scored         [     h h h h     ]        hidden states that predict r r r e, one position before each
    chunks         [ h h ] [ h h ]            as the budget cuts them: [2, V] logits, then the next [2, V]
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from dual_head.ops.scalars import SCALARS
from dual_head.ops.vocab_kernels import Products, reduce_products

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
            empty = tokens.part(slice(0))
            products = pytree.tree_leaves(self.products(empty.hidden, empty.states, rows))
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
    """Per-token scalars {name: [n]} of pairs; row 2 i is the chosen response of pair i, 2 i + 1 the rejected one.

    Of single replies, row 2 i is the reply, and 2 i + 1 is empty. desirable: their labels, bool [B]; divergence: of the
    policy from the backbone in nats a reply, estimated on replies to other prompts, [].
    """

    values: dict[str, Tensor]
    row: Tensor
    pairs: int
    desirable: Tensor | None = None
    divergence: Tensor | None = None

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

    def averages(self, name: str) -> Tensor:
        """Average over each response's tokens, then over both responses of a pair; of a single reply its own, [B]."""
        chosen, rejected = self.means(name)
        return chosen if self.desirable is not None else (chosen + rejected) / 2

    def lengths(self) -> Tensor:
        """Count each row's response tokens, [2B] in fp32."""
        return self._add(torch.ones_like(self.row, dtype=torch.float32))

    def _add(self, values: Tensor) -> Tensor:
        return values.new_zeros(2 * self.pairs).index_add(0, self.row, values)


def split_sides(per_row: Tensor) -> tuple[Tensor, Tensor]:
    """Split [2B, ...] along the responses of B pairs into chosen [B, ...] and rejected [B, ...]."""
    chosen, rejected = per_row.unflatten(0, (-1, 2)).unbind(1)
    return chosen, rejected


def map_tokens(f: Callable[[Tensor], Tensor], hidden: Tensor, states: States) -> tuple[Tensor, States]:
    """f of hidden and of every state; a state that is `hidden` itself stays one tensor with it."""
    h = f(hidden)
    return h, pytree.tree_map(lambda x: h if x is hidden else f(x), states)


def pick_tokens(hidden: Tensor, states: States, at: Tensor, labels: Tensor, row: Tensor) -> Tokens:
    """Pick the positions that predict the tokens to score.

    hidden [R, T, d], states [R, T, *]; at [n]: which of the R T positions; labels, row [n].
    """
    return Tokens(*map_tokens(lambda x: x.flatten(0, 1)[at], hidden, states), labels, row)


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
        # of a chunk [8, 16) with kl needed up to token 10: {"policy_logps": 8, "kl": 2}, so {"policy": 8, "base": 2}
        rows = {name: min(max(0, until[name] - start), len(labels)) for name in names}
        longest: dict[str, int] = {}
        for name in names:
            longest |= {read: max(rows[name], longest.get(read, 0)) for read in SCALARS[name].reads if rows[name]}
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
    if sum((stop - start) * token_bytes for start, stop, token_bytes in parts) <= budget:
        return [slice(0, max(until.values()))] if parts else []
    chunks = []
    for start, stop, token_bytes in parts:
        count = math.ceil((stop - start) / max(1, budget // token_bytes))
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
