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
from collections.abc import Callable
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
        run = _compiled() if compiled else _EAGER
        values, norms = run[0](products, labels, combine, wanted)
        ctx.plan, ctx.norms = plan, tuple(norms)
        ctx.save_for_backward(labels, *tensors, *values.values(), *norms.values())
        ctx.mark_non_differentiable(*(values[name] for name in wanted if name not in trained))
        return tuple(values.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        names, moving, wanted, trained, combine, compiled = ctx.plan
        labels, *rest = (x.detach() for x in ctx.saved_tensors)
        products = dict(zip(names, rest, strict=False))
        rest = rest[len(names) :]
        values = {name: x for name, x in zip(wanted, rest, strict=False) if name in trained}
        norms = dict(zip(ctx.norms, rest[len(wanted) :], strict=True))
        by = {name: grad for name, grad in zip(wanted, grads, strict=True) if name in trained}
        run = _compiled() if compiled else _EAGER
        found = run[1](products, labels, values, norms, by, combine, moving)
        if compiled:
            found = {name: products[name] if x is None else x for name, x in found.items()}
        return (None, None, *(found.get(name) for name in names))


def _values(
    products: Products, labels: Tensor, combine: Combine, wanted: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The scalars {name: [n]}, and the normaliser of every distribution {name: [n]}."""
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
            out[name] = z[which].gather(-1, labels[:, None])[:, 0] - norms[which]
    return out, norms


def _gradients(
    products: Products,
    labels: Tensor,
    values: dict[str, Tensor],
    norms: dict[str, Tensor],
    by: dict[str, Tensor],
    combine: Combine,
    moving: tuple[str, ...],
) -> dict[str, Tensor | None]:
    """Derivatives of the loss by the moving products, from those by the scalars: {name: like the product}."""
    fed = frozenset(DIVERGENCES.get(name) or next(iter(DISTRIBUTIONS[name])) for name in by)

    def combined(own: Products) -> dict[str, Tensor]:
        z = combine({**products, **own}, fed | ({"base"} if DIVERGENCES.keys() & by.keys() else set()))
        return {name: z[name] for name in z if name in fed}

    z, pull, *_ = torch.func.vjp(combined, {name: products[name] for name in moving})
    base = combine(products, frozenset({"base"}))["base"] if DIVERGENCES.keys() & by.keys() else None
    out: dict[str, Tensor] = {}
    for which, logits in z.items():
        parts: list[Tensor] = []
        if which == "delta":
            parts.append(2 * by["delta_norm"][:, None] * logits)
        else:
            log_p = logits - norms[which][:, None]
            scale: Any = 0.0
            for name in (f"{which}_logps", "kl" if which == "policy" else f"{which}_kl"):
                if name not in by:
                    continue
                c = by[name][:, None]
                if name.endswith("_logps"):
                    scale = scale - c
                    hot = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
                    parts.append(c * hot)
                else:
                    assert base is not None
                    scale = scale + c * (log_p - (base - norms["base"][:, None]) - values[name][:, None])
            parts.append(scale * log_p.exp())
        out[which] = sum(parts[1:], parts[0])
    return pull(out)[0]


def _gradients_in_place(products: Products, *rest: Any) -> dict[str, Tensor | None]:
    """As `_gradients`, where what is wider than a column is written over its product, and None stands for it."""
    found = _gradients(products, *rest)
    for name, x in found.items():
        if x is not None and x.shape[-1] > 1:
            products[name].copy_(x)
            found[name] = None
    return found


_EAGER = (_values, _gradients)


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
