"""Scalars of tokens from products as wide as the vocabulary, and the gradients back: one pass over V each way.

    forward    products -> combine -> logits [n, V] of each distribution -> scalars [n]       keeps lse and scalars [n]
    backward   products -> combine -> logits again, p = exp(logits - lse)  -> dproducts       no second normalisation

Both are plain torch, and compiled into fused loops where V is large: then gradients are written over the products they
are of, so that nothing more as wide as the vocabulary is allocated. The formulas are in `scalars`. It knows no guide,
no loss and no chunk.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dual_head.ops.compiled import compiled_or, fast_exp, use_compiled_folder
from dual_head.ops.scalars import DELTA, SCALARS, Distribution, View

BLOCK_BYTES = 2**25  # of products at a time on a CPU: what its last cache holds

# A nest of tensors: tuples, named or not, and dictionaries of them, and None where one is not needed.
Products = Any
Combine = Callable[[Products, frozenset[str]], dict[str, Tensor]]


class _Residuals(NamedTuple):
    """What derivatives read besides products, each [n] or of fewer first tokens: {scalar or distribution: ...}."""

    labels: Tensor
    values: dict[str, Tensor]
    lse: dict[str, Tensor]
    grads: dict[str, Tensor]  # c, derivatives of the loss by the trained scalars

    def part(self, at: slice) -> "_Residuals":
        """Some tokens, of those columns that have them."""
        columns = ({name: x[at] for name, x in column.items() if len(x) >= at.stop} for column in self[1:])
        return _Residuals(self.labels[at], *columns)


@dataclass(frozen=True)
class _Plan:
    """What is reduced from products, as a list of tensors: scalars, each of so many first tokens; some trained.

    graded: the indices of the products that have a gradient.
    """

    spec: pytree.TreeSpec
    graded: tuple[int, ...]
    scalars: tuple[str, ...]
    rows: tuple[int, ...]
    trained: frozenset[str]
    combine: Combine
    compiled: bool

    def blocks(self, leaves: Sequence[Tensor | None]) -> Iterator[tuple[slice, tuple[str, ...]]]:
        """Tokens of which the same scalars are read, and which; few at a time where a cache then keeps their rows.

        kl             [t t t t t . . .]       of the first five of eight tokens
        reward_logps   [t t t t t t t t]
                        |-----|---|----|       blocks of at most three: both scalars, both, one
        """
        start, size = 0, max(self.rows, default=0)
        tensors = [x for x in leaves if x is not None]
        if self.compiled and all(x.device.type == "cpu" for x in tensors):
            size = max(1, BLOCK_BYTES // sum(x.shape[-1] * x.element_size() for x in tensors if x.dim()))
        for stop in sorted({0, *self.rows})[1:]:
            scalars = tuple(name for name, rows in zip(self.scalars, self.rows, strict=True) if rows >= stop)
            for at in range(start, stop, size):
                yield slice(at, min(stop, at + size)), scalars
            start = stop

    def targets(self, leaves: Sequence[Any]) -> dict[int, Tensor]:
        """Where the gradients of products go: with `compiled`, over the products that are wide.

        products   base [z z z z]   weight [w]   logit_delta [x x x x]       of n tokens
        targets                     weight [0]   logit_delta [x x x x]       a new column; the product's own memory
        """
        over = {i for i in self.graded if self.compiled and _is_wide(leaves[i])}
        return {i: leaves[i] if i in over else torch.zeros_like(leaves[i]) for i in self.graded}


def reduce_products(
    products: Products,
    labels: Tensor,
    combine: Combine,
    scalars: tuple[str, ...],
    *,
    rows: Mapping[str, int] | None = None,
    measured: frozenset[str] = frozenset(),
    compiled: bool = False,
) -> tuple[Tensor, ...]:
    """Compute scalars, each [n] in fp32, of the distributions that `combine` makes of products.

    products: [n, V] and narrower; those wider than a column must have no other reader: with `compiled`, the backward
    pass overwrites them. rows: of how many of the n tokens a scalar is read, the first ones, where not of all;
    products that no other scalar is made of may then be of those tokens alone. Scalars in `measured` carry no gradient.
    Nothing flows into products that do not ask for it.
    """
    leaves, spec = pytree.tree_flatten(products)
    enabled = torch.is_grad_enabled()
    graded = tuple(i for i, x in enumerate(leaves) if enabled and x is not None and x.requires_grad)
    leaves = [x.expand(len(labels), 1) if i in graded and not x.dim() else x for i, x in enumerate(leaves)]
    trained = frozenset(name for name in scalars if SCALARS[name].trainable) - measured
    counts = tuple((rows or {}).get(name, len(labels)) for name in scalars)
    plan = _Plan(spec, graded, scalars, counts, trained, combine, compiled)
    return _Reduced.apply(plan, labels, *leaves)  # type: ignore[return-value]


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, labels: Tensor, *leaves: Tensor | None) -> tuple[Tensor, ...]:
        products = [None if x is None else x.detach() for x in leaves]
        run = _compiled()[0] if plan.compiled else _values
        blocks = [
            run(pytree.tree_unflatten(_part(products, at), plan.spec), labels[at], plan.combine, scalars)
            for at, scalars in plan.blocks(products)
        ]
        values, lse = (_concatenated([block[i] for block in blocks]) for i in (0, 1))
        empty = labels.new_zeros(0, dtype=torch.float32)
        values = {name: values.get(name, empty) for name in plan.scalars}
        ctx.plan, ctx.spec = plan, pytree.tree_flatten(_Residuals(labels, values, lse, {}))[1]
        ctx.save_for_backward(*leaves, labels, *values.values(), *lse.values())
        ctx.mark_non_differentiable(*(x for name, x in values.items() if name not in plan.trained))
        return tuple(values.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        tensors = [None if x is None else x.detach() for x in ctx.saved_tensors]
        count = plan.spec.num_leaves
        products: list[Any] = tensors[:count]
        trained_grads = {name: c for name, c in zip(plan.scalars, grads, strict=True) if name in plan.trained}
        residuals = pytree.tree_unflatten(tensors[count:], ctx.spec)._replace(grads=trained_grads)
        targets = plan.targets(products)
        plain, in_place = _compiled()[1:] if plan.compiled else (_gradients, _gradients)
        for at, names in plan.blocks(products):
            part = _part(products, at)
            scalars = tuple(name for name in names if name in plan.trained)
            graded = [i for i in plan.graded if part[i] is not None]
            if not scalars:
                for i in graded:
                    targets[i][at].zero_()
                continue
            inputs = (pytree.tree_unflatten(part, plan.spec), residuals.part(at), plan.combine, scalars)
            # Weights and gates [n, 1] first, whose gradients add up along V: the loops of wide products [n, V] may then
            # write over what both read.
            wide = tuple(i for i in graded if _is_wide(part[i]))
            narrow = tuple(i for i in graded if i not in wide)
            gradients = plain(*inputs, narrow) if narrow else {}
            gradients |= in_place(*inputs, wide) if wide else {}
            for i, x in gradients.items():
                targets[i][at].copy_(x)
        return (None, None, *(targets.get(i) for i in range(count)))


def _is_wide(x: Tensor) -> bool:
    """Whether a product is more than a number for each token, or than one that all of them share."""
    return x.dim() > 0 and x.shape[-1] > 1


def _part(leaves: Sequence[Tensor | None], at: slice) -> list[Any]:
    """Some tokens of those tensors that have them, else None; a number that all tokens share is as it is."""
    return [
        x if x is None or not x.dim() else None if len(x) < at.stop else x[at]  # a later token is not of it
        for x in leaves
    ]


def _concatenated(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The columns of blocks, one after the other; later blocks may lack some."""
    names = dict.fromkeys(name for block in blocks for name in block)
    return {name: torch.cat([block[name] for block in blocks if name in block]) for name in names}


def _values(
    products: Products,
    labels: Tensor,
    combine: Combine,
    scalars: tuple[str, ...],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every scalar [n], and every distribution's normaliser [n], by name."""
    z = combine(products, frozenset().union(*(SCALARS[name].reads for name in scalars)))
    p = {name: _normalised(logits, exp) for name, logits in z.items() if name != DELTA}
    lse = {name: x.lse[:, 0] for name, x in p.items()}
    if DELTA in z:
        p[DELTA] = Distribution(z[DELTA], *[z[DELTA][:, :0]] * 3)
    return {name: SCALARS[name].value(View(p[SCALARS[name].of], p.get("base"), labels)) for name in scalars}, lse


def _normalised(logits: Tensor, exp: Callable[[Tensor], Tensor]) -> Distribution:
    """Read logits [n, V] for their maximum, then for the sum of exponentials."""
    most = logits.amax(-1, keepdim=True)
    weights = exp(logits - most)
    total = weights.sum(-1, keepdim=True)
    return Distribution(logits, most + total.log(), weights, total)


def _gradients(
    products: Products,
    residuals: _Residuals,
    combine: Combine,
    scalars: tuple[str, ...],
    graded: tuple[int, ...],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> dict[int, Tensor]:
    """Derivatives of the loss by the graded products, from those by the scalars: {index: like the product}.

    Each distribution's dz = p sum_s c_s f_s + sum_s c_s g_s, so that p = exp(log p) is computed once for all scalars;
    then dz is pulled back through `combine`.
    """
    leaves, spec = pytree.tree_flatten(products)
    against_base = any(SCALARS[name].against_base for name in scalars)
    b = _distribution(combine(products, frozenset({"base"}))["base"], "base", residuals) if against_base else None

    def logits_of(*parts: Tensor) -> dict[str, Tensor]:
        inputs = list(leaves)
        for i, x in zip(graded, parts, strict=True):
            inputs[i] = x
        return combine(pytree.tree_unflatten(inputs, spec), frozenset(SCALARS[name].of for name in scalars))

    z, pull, *_ = torch.func.vjp(logits_of, *(leaves[i] for i in graded))
    dz = {}
    for distribution, logits in z.items():
        p = _distribution(logits, distribution, residuals)
        f_sum = g_sum = None
        for name in scalars:
            if SCALARS[name].of == distribution:
                c = residuals.grads[name][:, None]
                f, g = SCALARS[name].derivative(View(p, b, residuals.labels, residuals.values[name][:, None]))
                f_sum, g_sum = _plus(f_sum, c, f), _plus(g_sum, c, g)
        if f_sum is not None:
            g_sum = _plus(f_sum * exp(p.logp()), 1.0, g_sum)
        dz[distribution] = g_sum
    return dict(zip(graded, pull(dz), strict=True))


def _distribution(logits: Tensor, name: str, residuals: _Residuals) -> Distribution:
    """A distribution whose normaliser the forward pass has kept."""
    lse = logits[:, :0] if name == DELTA else residuals.lse[name][:, None]
    return Distribution(logits, lse, lse, lse)


def _plus(total: Any, c: Any, x: Any) -> Any:
    """total + c x, where None is 0."""
    return total if x is None else c * x if total is None else total + c * x


def _gradients_in_place(products: Products, *rest: Any, **options: Any) -> dict[int, Tensor]:
    """As `_gradients`, written over the products.

    before   base [z z z z]   logit_delta [x x x x]
    after    base [z z z z]   logit_delta [g g g g]      g = dloss/dx, in the memory that held x
    """
    leaves = pytree.tree_leaves(products)
    for i, x in _gradients(products, *rest, **options).items():
        leaves[i].copy_(x)
    return {}


@functools.cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    """The loops of the forward pass, of gradients, and of gradients in place, compiled; a process does it once."""
    use_compiled_folder()
    forward, plain, in_place = (partial(f, exp=fast_exp) for f in (_values, _gradients, _gradients_in_place))
    return compiled_or(forward, _values), compiled_or(plain, _gradients), compiled_or(in_place, _gradients)
