"""Per-token scalars of vocabulary-wide distributions and their derivatives: one pass over V each way.

With p = softmax(z), y the label, lse the logarithm of sum exp, and c the derivative of the loss by the scalar:

    log-probability   s = z_y - lse(z)                                     dz = c (1[v = y] - p)
    divergence        s = sum_v p (z - b) - (lse(z) - lse(b))              dz = c p (log p - log p_b - s)
    squared norm      s = sum_v delta^2                                    ddelta = 2 c delta

The forward pass keeps products and normalisers; the backward pass needs no second normalisation. Both are plain
torch, and compiled into fused loops where V is large: then gradients are written over the products they are of, so
that nothing more as wide as the vocabulary is allocated. It knows no guide, no loss and no chunk.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

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
MEASURED_ONLY = frozenset({"moved"})  # no objective can train it
DIVERGENCES = {"kl": "policy", "base_head_kl": "base_head"}
BLOCK_BYTES = 2**25  # of products at a time on a CPU: what its last cache holds
WORTH_COMPILING = 8192  # entries of a vocabulary; below, a run is over before the compiler is

Products = dict[str, Tensor]
Combine = Callable[[Products, frozenset[str]], dict[str, Tensor]]


def reduce_products(
    products: Products,
    labels: Tensor,
    combine: Combine,
    wanted: tuple[str, ...],
    *,
    measured: frozenset[str] = frozenset(),
    compiled: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the wanted scalars, each [n] in fp32, of the distributions that `combine` makes of products.

    products: [n, V] and narrower; those wider than a column must be nobody else's: with `compiled`, the backward
    pass overwrites them. Scalars in `measured` carry no gradient. Nothing flows into products that do not ask for it.
    """
    names = tuple(products)
    moving = tuple(name for name, x in products.items() if x.requires_grad and torch.is_grad_enabled())
    trained = tuple(name for name in wanted if name not in measured | MEASURED_ONLY)
    return _Reduced.apply((names, moving, wanted, trained, combine, compiled), labels, *products.values())  # type: ignore[return-value]


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: tuple, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        names, _, wanted, trained, combine, compiled = plan
        products = {name: x.detach() for name, x in zip(names, tensors, strict=True)}
        run = _compiled()[0] if compiled else _values
        parts = [run(own, of, combine, wanted) for own, of in _blocks(products, {"labels": labels}, compiled=compiled)]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        ctx.plan, ctx.columns = plan, tuple(columns)
        ctx.save_for_backward(labels, *tensors, *columns.values())
        ctx.mark_non_differentiable(*(columns[name] for name in wanted if name not in trained))
        return tuple(columns[name] for name in wanted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        names, moving, wanted, trained, combine, compiled = ctx.plan
        labels, *rest = (x.detach() for x in ctx.saved_tensors)
        products = dict(zip(names, rest, strict=False))
        columns = {"labels": labels, **dict(zip(ctx.columns, rest[len(names) :], strict=True))}
        columns |= {f"by {name}": grad for name, grad in zip(wanted, grads, strict=True) if name in trained}
        run = _compiled()[1] if compiled else _gradients
        parts = [run(own, of, combine, trained, moving) for own, of in _blocks(products, columns, compiled=compiled)]
        found: dict[str, Any] = {}
        for name in moving:
            own: Any = [part[name] for part in parts]
            if own[0] is None:  # written over the product
                found[name] = products[name]
            elif len(own) > 1:
                found[name] = torch.cat(own) if _per_token(products[name], labels) else torch.stack(own).sum(0)
            else:
                found[name] = own[0]
        return (None, None, *(found.get(name) for name in names))


def _per_token(x: Tensor, labels: Tensor) -> bool:
    """Whether a product has a row for every token, and is no number that all of them share."""
    return x.dim() > 0 and x.shape[0] == len(labels)


def _blocks(products: Products, columns: Products, *, compiled: bool) -> Iterator[tuple[Products, Products]]:
    """The same for a few rows at a time, where that keeps them in a processor's cache from one loop to the next."""
    labels = columns["labels"]
    rows = len(labels)
    if compiled and labels.device.type == "cpu":
        row_bytes = sum(x.shape[-1] * x.element_size() for x in products.values() if x.dim())
        rows = max(1, BLOCK_BYTES // row_bytes)
    if rows >= len(labels):
        yield products, columns
        return
    for start in range(0, len(labels), rows):
        at = slice(start, start + rows)
        yield (
            {name: x[at] if _per_token(x, labels) else x for name, x in products.items()},
            {name: x[at] for name, x in columns.items()},
        )


def _values(products: Products, columns: Products, combine: Combine, wanted: tuple[str, ...]) -> Products:
    """Every wanted scalar [n], and the normaliser of every distribution [n], as "lse NAME"."""
    z = combine(products, frozenset().union(*(DISTRIBUTIONS[name] for name in wanted)))
    norms = {name: logits.logsumexp(-1) for name, logits in z.items() if name != "delta"}
    out: dict[str, Tensor] = {}
    for name in wanted:
        if name == "delta_norm":
            out[name] = z["delta"].square().sum(-1)
        elif name == "moved":
            policy, base = ((z[x] - norms[x][:, None]).exp() for x in ("policy", "base"))
            out[name] = (policy - base).abs().sum(-1) / 2
        elif name in DIVERGENCES:
            policy, norm = z[DIVERGENCES[name]], norms[DIVERGENCES[name]]
            # The constants leave the sum: sum_v p_v (z_v - zbase_v) - (lse - lse_base).
            out[name] = ((policy - norm[:, None]).exp() * (policy - z["base"])).sum(-1) - (norm - norms["base"])
        else:
            (which,) = DISTRIBUTIONS[name]
            out[name] = z[which].gather(-1, columns["labels"][:, None])[:, 0] - norms[which]
    return out | {f"lse {name}": norm for name, norm in norms.items()}


def _gradients(
    products: Products, columns: Products, combine: Combine, trained: tuple[str, ...], moving: tuple[str, ...]
) -> dict[str, Tensor | None]:
    """Derivatives of the loss by the moving products, from those by the trained scalars: {name: like the product}."""
    read = {name: DIVERGENCES.get(name) or next(iter(DISTRIBUTIONS[name])) for name in trained}
    z_base = combine(products, frozenset({"base"}))["base"] if DIVERGENCES.keys() & read.keys() else None

    def moved(own: Products) -> dict[str, Tensor]:
        return combine({**products, **own}, frozenset(read.values()))

    z, pull, *_ = torch.func.vjp(moved, {name: products[name] for name in moving})
    out = {}
    for which, logits in z.items():
        by = {name: columns[f"by {name}"][:, None] for name in trained if read[name] == which}
        if which == "delta":
            out[which] = 2 * by["delta_norm"] * logits
            continue
        log_p = logits - columns[f"lse {which}"][:, None]
        scale, added = 0.0, 0.0
        for name, c in by.items():
            if name in DIVERGENCES:
                assert z_base is not None
                scale = scale + c * (log_p - (z_base - columns["lse base"][:, None]) - columns[name][:, None])
            else:
                words = torch.arange(logits.shape[-1], device=logits.device)
                scale, added = scale - c, c * (words == columns["labels"][:, None])
        out[which] = scale * log_p.exp() + added
    return pull(out)[0]


def _gradients_in_place(products: Products, *rest: Any) -> dict[str, Tensor | None]:
    """As `_gradients`, where what is wider than a column is written over its product, and None stands for it."""
    found = _gradients(products, *rest)
    for name, x in found.items():
        if x is not None and x.dim() and x.shape[-1] > 1:
            products[name].copy_(x)
            found[name] = None
    return found


@functools.cache
def _compiled() -> tuple[Callable, Callable]:
    return _falling_back(_values, _values), _falling_back(_gradients_in_place, _gradients)


def _falling_back(fast: Callable, plain: Callable) -> Callable:
    """`fast` compiled; `plain` from the first time that the compiler fails, for want of a C++ compiler or of Triton."""
    compiled = torch.compile(fast, dynamic=True)
    failed = False

    def run(*args: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*args)
            except TorchDynamoException as error:
                failed = True
                warnings.warn(
                    f"torch.compile cannot be used here ({str(error).splitlines()[0]}); training goes on without it, "
                    "slower. Install a C++ compiler (on GPUs: Triton) for speed.",
                    stacklevel=2,
                )
        return plain(*args)

    return run
