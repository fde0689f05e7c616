"""Alpha, the strength of each guide: from what a person writes to one tensor of rows by guides.

A strength is a number, or a schedule over the new tokens. It knows the guides' names and nothing of what
they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dual_head.backbone.features import TokenStrength
from dual_head.errors import DualHeadError, did_you_mean

ROUNDING = 1e-6  # 0.2 + 0.4 + 0.3 + 0.1 is more than 1

Schedule = Callable[..., Tensor]  # index of the new token [T], 0 for the first, to its strength [T]
Strength = float | Sequence[float] | Tensor | Schedule
Alpha = Strength | Mapping[str, Strength] | None

# Of this thread or task, which may ask a model that others ask at other strengths: so not on the model.
_REQUEST: ContextVar["tuple[Any, Strengths, Tensor] | None"] = ContextVar("request", default=None)


@dataclass(frozen=True)
class LinearDecay:
    """A strength that goes from `start` at the first new token to `end` at token `tokens`, and stays there."""

    start: float = 1.0
    end: float = 0.0
    tokens: int = 64

    def __call__(self, t: Tensor) -> Tensor:
        """Strength at each new token, [T]."""
        return self.start + (self.end - self.start) * (t / max(1, self.tokens)).clamp(max=1.0)


@dataclass(frozen=True)
class Strengths:
    """The guides that act, in the order of the columns of their values [B, guides], and the schedules they follow.

    origin: how many tokens came before the first new one, where schedules begin; [B, 1] where rows differ.
    """

    names: tuple[str, ...] = ()
    schedules: tuple[Schedule | None, ...] = ()
    origin: int | Tensor = 0

    def at(self, values: Tensor, columns: Tensor) -> Tensor:
        """Strengths [B, T or 1, k] of the logits at `columns` [T] of the sequence, from values [B, k]."""
        if not any(self.schedules):
            return values[:, None, :]
        t = (columns + 1 - self.origin).clamp_min(0)  # the logits at a position belong to the next token
        ones = torch.ones_like(t, dtype=values.dtype)
        factors = [ones if f is None else torch.as_tensor(f(t)).to(values) for f in self.schedules]
        return values[:, None, :] * torch.stack(factors, -1)

    def at_tokens(self, values: Tensor, seen: int | Tensor, length: int) -> dict[str, TokenStrength]:
        """The strength of each guide at all of `length` tokens that come after `seen`, from values [B, k]."""
        columns = torch.arange(length, device=values.device) + seen
        new = (columns + 1 >= self.origin).view(-1, length)
        alphas = self.at(values, columns).unbind(-1)
        return {name: TokenStrength(alpha, new) for name, alpha in zip(self.names, alphas, strict=True)}

    def over(self, values: Tensor, seen: int | Tensor, length: int, keep: slice | Tensor) -> Tensor:
        """Strengths [B, T or 1, k] of the kept ones of `length` tokens that come after `seen`; see `at`."""
        if not any(self.schedules):
            return values[:, None, :]
        return self.at(values, torch.arange(length, device=values.device)[keep] + seen)


def resolve_alpha(
    alpha: Alpha, *, defaults: Mapping[str, float], rows: int, fusion: str = "logits", origin: int = 0
) -> tuple[Strengths, Tensor]:
    """Return the guides that act, and their strengths [rows, acting guides] in fp32.

    alpha: None for the defaults; a number for every guide and row; one number per row; a schedule, called with
    the indices of new tokens; or {name: any of these}, where a guide that is not named gets 0. A guide that
    is 0 in every row does not act and is not computed; a schedule always acts. origin: see `Strengths`.
    Errors: an unknown name, a wrong length, NaN or infinity; a strength outside [0, 1], or a schedule, under
    probabilities.
    """
    if alpha is None:
        alpha = dict(defaults)
    if isinstance(alpha, Mapping):
        for name in alpha:
            if name not in defaults:
                raise DualHeadError(f"No guide is named '{name}'.{did_you_mean(name, defaults)}")
        by_guide = {name: alpha.get(name, 0.0) for name in defaults}
    else:
        by_guide = dict.fromkeys(defaults, alpha)
    schedules = {name: _schedule(value, name) for name, value in by_guide.items()}
    # A schedule is the whole strength, so that what it multiplies is 1.
    values = {name: _per_row(1.0 if schedules[name] else value, rows, name) for name, value in by_guide.items()}
    if fusion == "probabilities":
        if any(schedules.values()):
            raise DualHeadError("A schedule of alpha goes with fusion='logits' only.")
        for row in zip(*values.values(), strict=True):
            if min(row) < 0 or sum(row) > 1 + ROUNDING:
                raise DualHeadError(
                    "Fusing probabilities needs alphas of at least 0 whose sum is at most 1, "
                    f"not {list(row)}. Lower them. Use fusion='logits' for stronger or negative guidance."
                )
    names = tuple(name for name, row in values.items() if any(row))
    columns = torch.tensor([values[name] for name in names], dtype=torch.float32)
    strengths = Strengths(names, tuple(schedules[name] for name in names), origin)
    return strengths, columns.view(len(names), rows).T.contiguous()


def require_default(alphas: Mapping[str, float], *, names: Iterable[str], fusion: str = "logits") -> None:
    """Refuse default strengths {name: alpha} that are not numbers, not of `names`, or not for this fusion."""
    for name, alpha in alphas.items():
        if not isinstance(alpha, (int, float)):
            raise DualHeadError(
                f"The default alpha of '{name}' is a number, not {alpha}. Give schedules and rows to generate."
            )
    resolve_alpha(alphas, defaults=dict.fromkeys(names, 1.0), rows=1, fusion=fusion)


def _schedule(schedule: Any, name: str) -> Schedule | None:
    """Check a schedule by calling it; None for what cannot be called."""
    if not callable(schedule):
        return None
    for tokens in (torch.arange(4), torch.arange(1), torch.arange(1000, 1003)):
        try:
            strengths = torch.as_tensor(schedule(tokens))
        except Exception as error:  # whatever a user's function raises
            raise DualHeadError(
                f"The schedule of '{name}' failed for tokens {tokens.tolist()}: {error}. {_SCHEDULES}"
            ) from error
        if strengths.shape != tokens.shape or not strengths.isfinite().all():
            raise DualHeadError(f"The schedule of '{name}' gave {strengths} for tokens {tokens.tolist()}. {_SCHEDULES}")
    return schedule  # pyright: ignore[reportReturnType] - what it takes and gives was just seen


_SCHEDULES = (
    "It is called with a tensor of token indices and returns one finite strength each, as lambda t: 0.99**t does."
)


def _per_row(alpha: Strength, rows: int, name: str) -> list[float]:
    try:
        values = torch.as_tensor(alpha, dtype=torch.float64)
    except OverflowError:  # a whole number beyond any float
        values = torch.tensor(math.inf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DualHeadError(
            f"alpha for '{name}' must be a number, one number per row or a schedule, not {alpha!r}."
        ) from error
    if values.dim() > 1:
        raise DualHeadError(f"alpha for '{name}' must be one number per row, not a tensor {tuple(values.shape)}.")
    strengths = values.tolist() if values.dim() else [values.item()] * rows
    if len(strengths) != rows:
        raise DualHeadError(
            f"alpha for '{name}' has {len(strengths)} values for {rows} rows. Give one number, or one per row."
        )
    if not values.float().isfinite().all():  # strengths are fp32, where 1e39 is infinite
        raise DualHeadError(f"alpha for '{name}' holds NaN or infinity: {strengths}. Give finite numbers.")
    return strengths


def strengths_of(values: Tensor, rows: int) -> Tensor:
    """Strengths of so many rows, [rows or 1, k]: of copies of each row one after the other, as transformers makes them.

    Errors: neither as many rows, nor copies of them, nor one strength for all.
    """
    if len(values) in (1, rows):
        return values
    if rows % len(values) == 0:
        return values.repeat_interleave(rows // len(values), 0)
    if (values == values[:1]).all():
        return values[:1]
    raise DualHeadError(f"alpha has strengths for {len(values)} rows, and {rows} rows are run. Give one for all.")


@contextmanager
def requesting(model: Any, strengths: Strengths, values: Tensor) -> Iterator[None]:
    """Remember the strengths of a request while it runs, for calls of that model inside it that name none."""
    token = _REQUEST.set((model, strengths, values))
    try:
        yield
    finally:
        _REQUEST.reset(token)


def requested(model: Any, rows: int) -> tuple[Strengths, Tensor] | None:
    """The strengths of the request that is running, for so many rows; None where none is.

    Errors: a schedule, which does not say where in another sequence its first token is.
    """
    request = _REQUEST.get()
    if request is None or request[0] is not model:
        return None
    _, strengths, values = request
    if any(strengths.schedules):
        raise DualHeadError(
            "alpha follows a schedule, and a call of the model inside generate has no alpha. "
            "Hand on the alpha and guides among the model's inputs, or give it another alpha."
        )
    return strengths, strengths_of(values, rows).expand(rows, -1)
