"""Alpha, the strength of each guide: from what a person writes to one tensor of rows by guides.

It knows the guides' names and nothing of what they are.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dual_head.errors import DualHeadError, did_you_mean

ROUNDING = 1e-6  # 0.2 + 0.4 + 0.3 + 0.1 is more than 1

Alpha = float | Sequence[float] | Tensor | Mapping[str, "float | Sequence[float] | Tensor"] | None


def resolve_alpha(
    alpha: Alpha, *, defaults: Mapping[str, float], rows: int, fusion: str = "logits"
) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the guides that act, and their strengths [rows, acting guides] in fp32.

    alpha: None for the defaults; a number for every guide and row; one number per row; or {name: either},
    where a guide that is not named gets 0. A guide that is 0 in every row does not act and is not computed.
    Errors: an unknown name, a wrong length, NaN or infinity; a strength outside [0, 1] under probabilities.
    """
    if alpha is None:
        alpha = dict(defaults)
    if isinstance(alpha, Mapping):
        for name in alpha:
            if name not in defaults:
                raise DualHeadError(f"No guide is named '{name}'.{did_you_mean(name, defaults)}")
        given = {name: _per_row(alpha.get(name, 0.0), rows, name) for name in defaults}
    else:
        given = {name: _per_row(alpha, rows, name) for name in defaults}
    if fusion == "probabilities":
        for row in zip(*given.values(), strict=True):
            if min(row) < 0 or sum(row) > 1 + ROUNDING:
                raise DualHeadError(
                    "Fusing probabilities needs alphas of at least 0 whose sum is at most 1, "
                    f"not {list(row)}. Use fusion='logits' for stronger or negative guidance."
                )
    acting = tuple(name for name, values in given.items() if any(values))
    columns = [given[name] for name in acting]
    return acting, torch.tensor(columns, dtype=torch.float32).view(len(acting), rows).T.contiguous()


def _per_row(alpha: float | Sequence[float] | Tensor, rows: int, name: str) -> list[float]:
    try:
        values = torch.as_tensor(alpha, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DualHeadError(f"alpha for '{name}' must be a number or one number per row, not {alpha!r}.") from error
    if values.dim() > 1:
        raise DualHeadError(f"alpha for '{name}' must be one number per row, not a tensor {tuple(values.shape)}.")
    listed = values.tolist() if values.dim() else [values.item()] * rows
    if len(listed) != rows:
        raise DualHeadError(
            f"alpha for '{name}' has {len(listed)} values for {rows} rows. Give one number, or one per row."
        )
    if not all(math.isfinite(v) for v in listed):
        raise DualHeadError(f"alpha for '{name}' holds NaN or infinity: {listed}. Give finite numbers.")
    return listed
