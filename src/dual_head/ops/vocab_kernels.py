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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils import _pytree as pytree

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

# A nest of tensors: tuples, named or not, and dictionaries of them, and None where one is not needed.
Products = Any
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


class _Kept(NamedTuple):
    """What derivatives read besides products, each [n] or of fewer first tokens: {scalar or distribution: ...}."""

    labels: Tensor
    values: dict[str, Tensor]
    lse: dict[str, Tensor]
    by: dict[str, Tensor]  # derivatives of the loss by the trained scalars

    def part(self, at: slice) -> "_Kept":
        """Some tokens, of those columns that have them."""
        columns = ({name: x[at] for name, x in each.items() if len(x) >= at.stop} for each in self[1:])
        return _Kept(self.labels[at], *columns)


@dataclass(frozen=True)
class _Plan:
    """What is reduced from products, as a list of tensors: scalars, each of so many first tokens; some trained.

    moving: the numbers of the products that have a gradient.
    """

    spec: pytree.TreeSpec
    moving: tuple[int, ...]
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
        """Where the gradients of moving products go: with `compiled`, over the products that are wide."""
        over = {i for i in self.moving if self.compiled and _is_wide(leaves[i])}
        return {i: leaves[i] if i in over else torch.zeros_like(leaves[i]) for i in self.moving}


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
    graded = torch.is_grad_enabled()
    moving = tuple(i for i, x in enumerate(leaves) if graded and x is not None and x.requires_grad)
    leaves = [x.expand(len(labels), 1) if i in moving and not x.dim() else x for i, x in enumerate(leaves)]
    trained = frozenset(name for name in scalars if SCALARS[name].trainable) - measured
    counts = tuple((rows or {}).get(name, len(labels)) for name in scalars)
    plan = _Plan(spec, moving, scalars, counts, trained, combine, compiled)
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
        values, lse = (_joined([block[i] for block in blocks]) for i in (0, 1))
        none = labels.new_zeros(0, dtype=torch.float32)
        values = {name: values.get(name, none) for name in plan.scalars}
        ctx.plan, ctx.kept = plan, pytree.tree_flatten(_Kept(labels, values, lse, {}))[1]
        ctx.save_for_backward(*leaves, labels, *values.values(), *lse.values())
        ctx.mark_non_differentiable(*(x for name, x in values.items() if name not in plan.trained))
        return tuple(values.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = [None if x is None else x.detach() for x in ctx.saved_tensors]
        count = plan.spec.num_leaves
        products: list[Any] = saved[:count]
        by = {name: grad for name, grad in zip(plan.scalars, grads, strict=True) if name in plan.trained}
        kept = pytree.tree_unflatten(saved[count:], ctx.kept)._replace(by=by)
        targets = plan.targets(products)
        plain, in_place = _compiled()[1:] if plan.compiled else (_gradients, _gradients)
        for at, scalars in plan.blocks(products):
            part = _part(products, at)
            trained = tuple(x for x in scalars if x in plan.trained)
            moving = [i for i in plan.moving if part[i] is not None]
            if not trained:
                for i in moving:
                    targets[i][at].zero_()
                continue
            nest = pytree.tree_unflatten(part, plan.spec)
            of_part = kept.part(at)
            # What adds up along V first: the loops of what does not may then write over what both read.
            wide = tuple(i for i in moving if _is_wide(part[i]))
            narrow = tuple(i for i in moving if i not in wide)
            gradients = plain(nest, of_part, plan.combine, trained, narrow) if narrow else {}
            gradients |= in_place(nest, of_part, plan.combine, trained, wide) if wide else {}
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


def _joined(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
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


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """1[v = y], [n, V]; compared as floats, which hold every id below 2^24 and are as wide as the logits."""
    words = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (words == labels[:, None].to(logits.dtype)).to(logits.dtype)


def _gradients(
    products: Products,
    kept: _Kept,
    combine: Combine,
    trained: tuple[str, ...],
    moving: tuple[int, ...],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> dict[int, Tensor]:
    """Derivatives of the loss by the moving products, from those by the trained scalars: {number: like the product}."""
    leaves, spec = pytree.tree_flatten(products)
    against_base = any(SCALARS[name].against_base for name in trained)
    b = _known(combine(products, frozenset({"base"}))["base"], "base", kept) if against_base else None

    def moved(*parts: Tensor) -> dict[str, Tensor]:
        changed = list(leaves)
        for i, x in zip(moving, parts, strict=True):
            changed[i] = x
        return combine(pytree.tree_unflatten(changed, spec), frozenset(SCALARS[name].of for name in trained))

    z, pull, *_ = torch.func.vjp(moved, *(leaves[i] for i in moving))
    dz = {}
    for which, logits in z.items():
        p = _known(logits, which, kept)
        by_p = beside = None
        for name in trained:
            if SCALARS[name].of == which:
                c = kept.by[name][:, None]
                f, g = SCALARS[name].derivative(View(p, b, kept.labels, kept.values[name][:, None]))
                by_p, beside = _plus(by_p, c, f), _plus(beside, c, g)
        if by_p is not None:
            beside = _plus(by_p * exp(p.logp()), 1.0, beside)
        dz[which] = beside
    return dict(zip(moving, pull(dz), strict=True))


def _known(logits: Tensor, name: str, kept: _Kept) -> Distribution:
    """A distribution whose normaliser the forward pass has kept."""
    lse = logits[:, :0] if name == DELTA else kept.lse[name][:, None]
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
