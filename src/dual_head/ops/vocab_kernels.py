"""Per-token scalars of vocabulary-wide distributions and their derivatives: one pass over V each way.

With p = softmax(z), y the label, lse the logarithm of sum exp, and c the derivative of the loss by the scalar:

    log-probability   s = z_y - lse(z)                                     dz = c (1[v = y] - p)
    divergence        s = sum_v p (z - b) - (lse(z) - lse(b))              dz = c p (log p - log p_b - s)
    squared norm      s = sum_v delta^2                                    ddelta = 2 c delta

Each is a class of `Scalar` with its value and its derivative side by side, and an entry in `SCALARS`; a loss over a
new scalar needs nothing else here.

The forward pass keeps products and normalisers; the backward pass needs no second normalisation. Both are plain
torch, and compiled into fused loops where V is large: then gradients are written over the products they are of, so
that nothing more as wide as the vocabulary is allocated. It knows no guide, no loss and no chunk.
"""

import functools
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

BLOCK_BYTES = 2**25  # of products at a time on a CPU: what its last cache holds
LARGE_VOCABULARY = 8192  # below, loops are short and are left as they are
# Entries of all logits of a run. Compiled, each takes a thread 35 ns less (docs/results/speed.md); compiling takes
# half a minute.
PAYS = 2 * 10**9
CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable
VARIANTS = 64  # loops that a process may compile: one for each method, side of a pair, and what is looked at
# Products and sums in one instruction; the compiler's default keeps them apart.
COMPILER: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
LEAST_EXPONENT = -87.0  # e^x is a normal number of fp32

Products = dict[str, Tensor]
Combine = Callable[[Products, frozenset[str]], dict[str, Tensor]]


class Distribution(NamedTuple):
    """One distribution at n tokens, p = softmax(logits [n, V]) = exp(logits - lse [n, 1]).

    weights [n, V], total [n, 1]: what p is the quotient of; only values know them, derivatives do with log p.
    """

    logits: Tensor
    lse: Tensor
    weights: Tensor
    total: Tensor

    def logp(self) -> Tensor:
        """log p, [n, V]."""
        return self.logits - self.lse

    def mean(self, x: Tensor) -> Tensor:
        """sum_v p x of x [n, V]: [n]."""
        return (self.weights * x).sum(-1) / self.total[:, 0]


class View(NamedTuple):
    """What a scalar reads at n tokens: its distribution p, the backbone's b where it is asked for, the labels [n].

    s [n, 1]: its value, for its derivative.
    """

    p: Distribution
    b: Any
    labels: Tensor
    s: Any = None


@dataclass(frozen=True)
class Scalar(ABC):
    """One number s a token, and its derivative by the logits z [n, V] of the distribution `of`.

    against_base: it also reads the backbone's distribution, which is a constant to it.
    """

    of: str
    against_base: ClassVar[bool] = False
    trainable: ClassVar[bool] = True  # False: no loss can train it, so that it has no derivative

    @property
    def reads(self) -> tuple[str, ...]:
        """The distributions it is computed from."""
        return (self.of, "base") if self.against_base else (self.of,)

    @abstractmethod
    def value(self, at: View) -> Tensor:
        """s, [n]."""

    def derivative(self, at: View) -> tuple[Any, Any]:
        """ds/dz = p f + g as (f, g), each [n, V], [n, 1], a number, or None for 0."""
        raise NotImplementedError(f"{type(self).__name__} has no derivative")


class LogProbability(Scalar):
    """log p(y)."""

    def value(self, at: View) -> Tensor:
        """z_y - lse(z)."""
        return at.p.logits.gather(-1, at.labels[:, None])[:, 0] - at.p.lse[:, 0]

    def derivative(self, at: View) -> tuple[Any, Any]:
        """1[v = y] - p."""
        return -1.0, _one_hot(at.labels, at.p.logits)


class Divergence(Scalar):
    """KL(p || b) in nats."""

    against_base = True

    def value(self, at: View) -> Tensor:
        """sum_v p_v (z_v - b_v) - (lse(z) - lse(b)): the constants leave the sum."""
        return at.p.mean(at.p.logits - at.b.logits) - (at.p.lse[:, 0] - at.b.lse[:, 0])

    def derivative(self, at: View) -> tuple[Any, Any]:
        """p (log p - log b - s)."""
        return at.p.logp() - at.b.logp() - at.s, None


class TotalVariation(Scalar):
    """The share of probability that moved from b to p."""

    against_base, trainable = True, False

    def value(self, at: View) -> Tensor:
        """sum_v |p_v - b_v| / 2."""
        return (at.p.weights / at.p.total - at.b.weights / at.b.total).abs().sum(-1) / 2


class SquaredNorm(Scalar):
    """|delta|^2 of what stands in the place of logits."""

    def value(self, at: View) -> Tensor:
        """sum_v delta_v^2."""
        return at.p.logits.square().sum(-1)

    def derivative(self, at: View) -> tuple[Any, Any]:
        """2 delta."""
        return None, 2 * at.p.logits


SCALARS: dict[str, Scalar] = {
    "policy_logps": LogProbability("policy"),
    "reward_logps": LogProbability("reward"),
    "base_logps": LogProbability("base"),
    "kl": Divergence("policy"),
    "second_kl": Divergence("second"),
    "moved": TotalVariation("policy"),
    "delta_norm": SquaredNorm("delta"),
}
DELTA = "delta"  # the one entry that is no distribution, so that it is not normalised


@dataclass(frozen=True)
class _Plan:
    """What is reduced from products of these names: wanted scalars, each of so many first tokens; some are trained."""

    names: tuple[str, ...]
    moving: tuple[str, ...]
    wanted: tuple[str, ...]
    rows: tuple[int, ...]
    trained: frozenset[str]
    combine: Combine
    compiled: bool

    def blocks(self, products: Products) -> Iterator[tuple[slice, tuple[str, ...]]]:
        """Tokens of which the same scalars are wanted, and which; few at a time where a cache then keeps their rows."""
        start, size = 0, max(self.rows, default=0)
        if self.compiled and all(x.device.type == "cpu" for x in products.values()):
            size = max(1, BLOCK_BYTES // sum(x.shape[-1] * x.element_size() for x in products.values() if x.dim()))
        for stop in sorted({0, *self.rows})[1:]:
            wanted = tuple(name for name, rows in zip(self.wanted, self.rows, strict=True) if rows >= stop)
            for at in range(start, stop, size):
                yield slice(at, min(stop, at + size)), wanted
            start = stop

    def targets(self, products: Products) -> Products:
        """Where the gradients of moving products go: with `compiled`, over the products that are wide."""
        over = {name: self.compiled and _is_wide(products[name]) for name in self.moving}
        return {name: products[name] if over[name] else torch.zeros_like(products[name]) for name in self.moving}


def reduce_products(
    products: Products,
    labels: Tensor,
    combine: Combine,
    wanted: tuple[str, ...],
    *,
    rows: Mapping[str, int] | None = None,
    measured: frozenset[str] = frozenset(),
    compiled: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the wanted scalars, each [n] in fp32, of the distributions that `combine` makes of products.

    products: [n, V] and narrower; those wider than a column must be nobody else's: with `compiled`, the backward
    pass overwrites them. rows: of how many of the n tokens a scalar is wanted, the first ones, where not of all;
    products that no other scalar is made of may then be of those tokens alone. Scalars in `measured` carry no gradient.
    Nothing flows into products that do not ask for it.
    """
    moving = tuple(name for name, x in products.items() if x.requires_grad and torch.is_grad_enabled())
    products = {name: x if x.dim() or name not in moving else x.expand(len(labels), 1) for name, x in products.items()}
    trained = frozenset(name for name in wanted if SCALARS[name].trainable) - measured
    counts = tuple((rows or {}).get(name, len(labels)) for name in wanted)
    plan = _Plan(tuple(products), moving, wanted, counts, trained, combine, compiled)
    return _Reduced.apply(plan, labels, *products.values())  # type: ignore[return-value]


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        products = {name: x.detach() for name, x in zip(plan.names, tensors, strict=True)}
        run = _compiled()[0] if plan.compiled else _values
        parts: dict[str, list[Tensor]] = {name: [] for name in plan.wanted}
        for at, wanted in plan.blocks(products):
            for name, x in run(_of(products, at), labels[at], plan.combine, wanted).items():
                parts.setdefault(name, []).append(x)
        none = labels.new_zeros(0, dtype=torch.float32)
        columns = {name: torch.cat(part) if part else none for name, part in parts.items()}
        ctx.plan, ctx.columns = plan, tuple(columns)
        ctx.save_for_backward(labels, *tensors, *columns.values())
        ctx.mark_non_differentiable(*(columns[name] for name in plan.wanted if name not in plan.trained))
        return tuple(columns[name] for name in plan.wanted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        labels, *rest = (x.detach() for x in ctx.saved_tensors)
        products = dict(zip(plan.names, rest, strict=False))
        columns = {"labels": labels, **dict(zip(ctx.columns, rest[len(plan.names) :], strict=True))}
        columns |= {f"by {name}": grad for name, grad in zip(plan.wanted, grads, strict=True) if name in plan.trained}
        found = plan.targets(products)
        plain, in_place = _compiled()[1:] if plan.compiled else (_gradients, _gradients)
        for at, wanted in plan.blocks(products):
            own, of, trained = _of(products, at), _of(columns, at), tuple(x for x in wanted if x in plan.trained)
            there = [name for name in plan.moving if name in own]
            if not trained:
                for name in there:
                    found[name][at].zero_()
                continue
            # What adds up along V first: the loops of what does not may then write over what both read.
            wide = tuple(name for name in there if _is_wide(own[name]))
            narrow = tuple(name for name in there if name not in wide)
            gradients = plain(own, of, plan.combine, trained, narrow) if narrow else {}
            gradients |= in_place(own, of, plan.combine, trained, wide) if wide else {}
            for name, x in gradients.items():
                found[name][at].copy_(x)
        return (None, None, *(found.get(name) for name in plan.names))


def _is_wide(x: Tensor) -> bool:
    """Whether a product is more than a number for each token, or than one that all of them share."""
    return x.dim() > 0 and x.shape[-1] > 1


def _of(tensors: Products, at: slice) -> Products:
    """Some tokens of those tensors that have them; a number that all tokens share is as it is."""
    return {name: x[at] if x.dim() else x for name, x in tensors.items() if not x.dim() or len(x) >= at.stop}


def _values(
    products: Products,
    labels: Tensor,
    combine: Combine,
    wanted: tuple[str, ...],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> Products:
    """Every wanted scalar [n], every distribution's normaliser as "lse NAME", [n]."""
    z = combine(products, frozenset().union(*(SCALARS[name].reads for name in wanted)))
    p = {name: _normalised(logits, exp) for name, logits in z.items() if name != DELTA}
    if DELTA in z:
        p[DELTA] = Distribution(z[DELTA], *[z[DELTA][:, :0]] * 3)
    out = {name: SCALARS[name].value(View(p[SCALARS[name].of], p.get("base"), labels)) for name in wanted}
    return out | {f"lse {name}": x.lse[:, 0] for name, x in p.items() if name != DELTA}


def _normalised(logits: Tensor, exp: Callable[[Tensor], Tensor]) -> Distribution:
    """Read logits [n, V] for their maximum, then for the sum of exponentials."""
    most = logits.amax(-1, keepdim=True)
    weights = exp(logits - most)
    total = weights.sum(-1, keepdim=True)
    return Distribution(logits, most + total.log(), weights, total)


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """1[v = y], [n, V]; compared as floats, which hold every id below 2^24 and are as wide as the logits."""
    words = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (words == labels[:, None].to(logits.dtype)).to(logits.dtype)


def _gradients(
    products: Products,
    columns: Products,
    combine: Combine,
    trained: tuple[str, ...],
    moving: tuple[str, ...],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> dict[str, Tensor]:
    """Derivatives of the loss by the moving products, from those by the trained scalars: {name: like the product}."""
    against_base = any(SCALARS[name].against_base for name in trained)
    b = _known(combine(products, frozenset({"base"}))["base"], "base", columns) if against_base else None

    def moved(parts: Products) -> dict[str, Tensor]:
        return combine({**products, **parts}, frozenset(SCALARS[name].of for name in trained))

    z, pull, *_ = torch.func.vjp(moved, {name: products[name] for name in moving})
    out = {}
    for which, logits in z.items():
        p = _known(logits, which, columns)
        by_p = beside = None
        for name in trained:
            if SCALARS[name].of == which:
                c = columns[f"by {name}"][:, None]
                f, g = SCALARS[name].derivative(View(p, b, columns["labels"], columns[name][:, None]))
                by_p, beside = _plus(by_p, c, f), _plus(beside, c, g)
        if by_p is not None:
            beside = _plus(by_p * exp(p.logp()), 1.0, beside)
        out[which] = beside
    return pull(out)[0]


def _known(logits: Tensor, name: str, columns: Products) -> Distribution:
    """A distribution whose normaliser the forward pass has kept."""
    lse = logits[:, :0] if name == DELTA else columns[f"lse {name}"][:, None]
    return Distribution(logits, lse, lse, lse)


def _plus(total: Any, c: Any, x: Any) -> Any:
    """total + c x, where None is 0."""
    return total if x is None else c * x if total is None else total + c * x


def _gradients_in_place(products: Products, *rest: Any, **options: Any) -> dict[str, Tensor]:
    """As `_gradients`, written over the products."""
    for name, x in _gradients(products, *rest, **options).items():
        products[name].copy_(x)
    return {}


def _fast_exp(x: Tensor) -> Tensor:
    """e^x to 1e-7 of itself for x <= 87, from 2^n e^f with f a polynomial of x - n ln 2, |f| < 0.35 (Cephes' expf).

    A processor's compiled loops call a library for torch.exp, entry by entry of a register; this stays in the loop.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.exp()
    x = x.clamp_min(LEAST_EXPONENT)
    n = (x * 1.44269504088896341).round()
    f = x - n * 0.693359375 + n * 2.12194440e-4  # ln 2 in two parts, the first of which n multiplies without rounding
    p = 1.9875691500e-4
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * f + coefficient
    return (p * (f * f) + f + 1.0) * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def worth_compiling(vocab_size: int, tokens: float = math.inf) -> bool:
    """Whether compiled loops save more time than compiling takes, for a run that scores so many tokens."""
    return vocab_size >= LARGE_VOCABULARY and vocab_size * tokens >= PAYS


def compiled_folder() -> Path:
    """Where compiled loops are kept across runs: TORCHINDUCTOR_CACHE_DIR, or else a folder in the user's cache."""
    chosen = os.environ.get(CACHE_FOLDER, default_cache_dir())
    if chosen != default_cache_dir():  # torch sets the variable to its own default, which a restart may empty
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dual-head", "kernels")


@functools.cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[CACHE_FOLDER] = str(folder)
    except OSError:
        pass  # torch's own will do
    forward, plain, in_place = (partial(f, exp=_fast_exp) for f in (_values, _gradients, _gradients_in_place))
    return _falling_back(forward, _values), _falling_back(plain, _gradients), _falling_back(in_place, _gradients)


def _falling_back(fast: Callable, plain: Callable) -> Callable:
    """`fast` compiled; `plain` from the first time that the compiler fails, for want of a C++ compiler or of Triton."""
    compiled = torch.compile(fast, dynamic=True, options=COMPILER)
    failed = False

    def run(*args: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                with torch._dynamo.config.patch(recompile_limit=VARIANTS):
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
