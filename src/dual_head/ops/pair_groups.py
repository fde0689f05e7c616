"""Whole pairs at a time: the loss of a group is known as soon as its logits are, and its gradient is taken at once.

    group 0   logits [8, V] -> loss_0 -> gradients, added to `total`; logits freed
    group 1   logits [3, V] -> loss_1 -> the same
    backward  d loss = 1: `total` as it is; else times that number, in its own memory

No product is computed twice, and no logits outlive their group. It knows tokens and a loss of them, and neither guides
nor methods.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dual_head.ops.linear import accumulating
from dual_head.ops.token_scores import Tokens


@dataclass(frozen=True)
class Group:
    """Pairs first, first + 1, ... and their tokens [start, stop), the first `chosen` of them of chosen responses.

    Of single replies all tokens are of chosen responses.
    """

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
    total = math.inf  # bytes of the last group; no pair fits into the one before the first
    for i, (chosen, rejected) in enumerate(zip(counts[::2], counts[1::2], strict=True)):
        count, size = chosen + rejected, chosen * chosen_bytes + rejected * rejected_bytes
        total += size
        if total <= budget:
            last = groups[-1]
            groups[-1] = Group(last.first, last.pairs + 1, last.start, last.stop + count, last.chosen + chosen)
        else:
            total, start = size, groups[-1].stop if groups else 0
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
    loss_of: Callable[[Tokens, Group], dict[str, Tensor]],
    parameters: Iterable[Tensor],
) -> dict[str, Tensor]:
    """Sum a loss over groups of whole pairs, with the gradient of each group taken before the next begins.

        loss = sum over groups of loss_of(tokens of the group, the group)["loss"]

    tokens: group by group, in each chosen responses before rejected ones, see `group_order`; loss_of gives "loss" []
    and metrics [pairs]; parameters: what the loss depends on besides the tokens. Gives the loss, ready for one
    backward, and the metrics of all pairs.
    """
    if not torch.is_grad_enabled():
        outs = [
            loss_of(_part(tokens, group, [x[group.start : group.stop] for x in tokens.tensors()]), group)
            for group in groups
        ]
        return _all_pairs(outs)
    leaves = [x for x in parameters if x.requires_grad]
    names: list[str] = []
    out = _ByPairs.apply(tokens, groups, loss_of, names, len(leaves), *leaves, *tokens.tensors())
    return dict(zip(names, out, strict=True))  # type: ignore[arg-type]


class _ByPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tokens, groups: list, loss_of: Any, names: list[str], count: int, *tensors: Tensor):
        # tensors   [ leaves: weights of the head | carriers: hidden [n, d] and states [n, *] of the tokens ]
        # gradients of leaves are sums over groups; those of carriers are the groups' rows, one after the other
        leaves, carriers = tensors[:count], tensors[count:]
        total: list[Tensor | None] = [None] * count
        per_token: list[list[Tensor]] = [[] for _ in carriers]
        outs = []
        with accumulating(leaves) as sinks:
            for group in groups:
                parts = [x[group.start : group.stop].detach().requires_grad_(x.requires_grad) for x in carriers]
                graded = [i for i, x in enumerate(parts) if x.requires_grad]
                with torch.enable_grad():
                    out = loss_of(_part(tokens, group, parts), group)
                outs.append({name: x.detach() for name, x in out.items()})
                if not out["loss"].requires_grad:
                    continue
                sources = [*leaves, *(parts[i] for i in graded)]
                grads = torch.autograd.grad(out.pop("loss"), sources, allow_unused=True)
                total = [_added(a, b) for a, b in zip(total, grads, strict=False)]
                for i, grad in zip(graded, grads[count:], strict=True):
                    per_token[i].append(torch.zeros_like(parts[i]) if grad is None else grad)
        total = [_added(a, sink.total) for a, sink in zip(total, sinks, strict=True)]
        ctx.grads = [*total, *(torch.cat(grads) if grads else None for grads in per_token)]
        columns = _all_pairs(outs)
        names.extend(columns)
        loss, *metrics = columns.values()
        ctx.mark_non_differentiable(*metrics)
        return loss, *metrics

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


def _all_pairs(outs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of the groups' losses, and their metrics one after the other."""
    columns = {name: [out[name] for out in outs] for name in outs[0]}
    return {name: torch.stack(parts).sum() if name == "loss" else torch.cat(parts) for name, parts in columns.items()}
