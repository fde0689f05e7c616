"""Fold: from guides and strengths to one lm_head with the logits that they give together.

    z = s (W (h + sum_k a_k (E_k h + c_k)) + b) + sum_k a_k (D_k h + c'_k)
    W' = W (I + sum_k a_k E_k) + sum_k a_k D_k / s,      b' = b + W sum_k a_k c_k + sum_k a_k c'_k / s

with E_k and c_k those of guides that change the hidden state, D_k and c'_k those of guides that change logits, gates
multiplied in, and s the model's scale of its lm_head's output. The scale is measured, not looked up. Guides are known
here by their linear map alone.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.backbone.decoder import Decoder
from dual_head.backbone.features import Features
from dual_head.errors import DualHeadError
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha

# Probed from small logits to large: a cap at 30 leaves logits of 1 as they are, and bends those of 1000.
PROBE_SIZES = (1.0, 30.0, 1000.0)
ROUNDINGS = 16  # by how many roundings a probed row may miss being a plain multiple


def acting_strengths(model: AlignedModel, alpha: Alpha) -> dict[str, float]:
    """Return {name: alpha} of the guides that act, in the order of the config."""
    if model.config.fusion != "logits":
        raise DualHeadError(
            f"These guides are fused as {model.config.fusion}, and a mixture of distributions is not a linear map of "
            "the hidden state. Train with fusion=logits to merge."
        )
    for value in alpha.values() if isinstance(alpha, Mapping) else [alpha]:
        per_row = value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, Sequence)
        if callable(value) or (per_row and not isinstance(value, str)):
            raise DualHeadError(
                "A merged lm_head has one strength for every token and row: alpha must be a number, or {name: number}, "
                "not a schedule or one number per row. Keep the guides apart for that."
            )
    acting, values = model.resolve_alpha(alpha, 1)
    return dict(zip(acting.names, values[0].tolist(), strict=True))


def plain_head(backbone: Decoder) -> nn.Linear:
    """Return the lm_head, a dense floating-point matrix in memory. Errors: anything else says what to load."""
    for module in backbone.lm.modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise DualHeadError(
                f"The backbone carries a PEFT adapter ({type(module).__name__}), which a plain checkpoint cannot hold. "
                "Fold it in first: lm = lm.merge_and_unload()."
            )
    if any(tensor.is_meta for tensor in backbone.lm.parameters()):
        raise DualHeadError("Parts of the backbone are offloaded, not in memory. Load it without device_map to merge.")
    head = backbone.lm.get_output_embeddings()
    # Exactly these: quantised layers and sharded tensors are subclasses of them, and some call themselves bfloat16.
    plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter and head.weight.dtype.is_floating_point
    if not isinstance(head, nn.Linear) or not plain or head.weight.dtype.itemsize < 2:
        raise DualHeadError(
            f"The lm_head is not a plain floating-point matrix (it is a {type(head).__name__}), so guides cannot be "
            "added to it. Load the backbone without quantisation to merge, and quantise the merged checkpoint."
        )
    return head


def _output_scale(backbone: Decoder, head: nn.Linear) -> float | None:
    """Measure s in z = s (W h + b) on random h; None where z is something else of the lm_head's output.

    Errors: a model that does something to h before the lm_head.
    """
    noise = torch.randn(2, head.in_features, generator=torch.Generator().manual_seed(0))
    h = noise.to(head.weight.device, head.weight.dtype)[None]
    unit = F.linear(h, head.weight).float().std().clamp_min(1e-6)
    hidden = torch.cat([(h * (size / unit)).to(h.dtype) for size in PROBE_SIZES], 1)  # [1, 6, d]
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    try:
        z = backbone.logits(hidden).cpu().double()
    finally:
        hook.remove()
    u = F.linear(hidden, head.weight, head.bias).cpu().double()
    scale = ((z * u).sum() / (u * u).sum()).item()
    error = ((z - scale * u).norm(dim=-1) / z.norm(dim=-1)).max()
    if error <= ROUNDINGS * torch.finfo(head.weight.dtype).eps and scale != 0:
        return scale
    if len(inputs) != 1 or not torch.equal(inputs[0], hidden):
        raise DualHeadError(
            f"{type(backbone.lm).__name__} changes the hidden state between decoder and lm_head, so no "
            "lm_head can do what the guides do. Use the guides as they are."
        )
    return None


def _linear_map(model: AlignedModel, name: str) -> tuple[Tensor, Tensor | None]:
    """The guide's matrix and constant in the backbone's own sizes. Errors: the guide's own, with its name."""
    guide, transfer = model.guide(name), model.transfer(name)
    try:
        matrix, constant = guide.linear_map()
    except DualHeadError as error:
        raise DualHeadError(f"The guide '{name}' cannot be merged. {error}") from error
    if transfer is not None:
        # Both halves of a transfer are linear: the narrowed unit vectors are the matrix that narrows.
        unit = torch.eye(model.backbone.shape.hidden_size, dtype=matrix.dtype, device=matrix.device)
        matrix = matrix @ transfer.features(Features(unit), ()).hidden.to(matrix.dtype).T
        if guide.space == "vocabulary":
            matrix = transfer.logit_delta(matrix.T).T
            constant = None if constant is None else transfer.logit_delta(constant)
    return matrix, constant


def head_change(
    model: AlignedModel, strengths: Mapping[str, float], head: nn.Linear
) -> tuple[Tensor | None, Tensor | None]:
    """W' - W [V, d] and b' - b [V] in fp64 (fp32 off the processor, or for short formats); None for no change.

    Errors: a guide that is not a linear map of h, or one that acts after logits are bent.
    """
    wide = torch.float64 if head.weight.device.type == "cpu" and head.weight.dtype.itemsize >= 4 else torch.float32
    base = head.weight.detach().to(wide)
    scale = _output_scale(model.backbone, head) if strengths else None
    changes: list[Tensor | None] = [None, None]
    for name, a in strengths.items():
        matrix, constant = (None if x is None else x.to(wide) for x in _linear_map(model, name))
        assert matrix is not None
        if constant is not None and head.bias is None:
            raise DualHeadError(
                f"The guide '{name}' adds a constant (bias), and the lm_head of {type(model.backbone.lm).__name__} has "
                "no bias to hold it: transformers would not load one. Train with bias=false to merge."
            )
        if model.guide(name).space == "hidden":
            parts = base @ matrix, None if constant is None else base @ constant
        elif scale is None:
            raise DualHeadError(
                f"{type(model.backbone.lm).__name__} bends its logits after the lm_head (as a soft cap does), and the "
                f"guide '{name}' adds to them after that. Use it as it is, or train one that edits the hidden state "
                "(kind 'hidden'), which merges."
            )
        else:
            parts = matrix / scale, None if constant is None else constant / scale
        for i, part in enumerate(parts):
            if part is not None:
                changes[i] = a * part if changes[i] is None else changes[i].add_(part, alpha=a)  # type: ignore[union-attr]
    return changes[0], changes[1]


def fold(model: AlignedModel, strengths: Mapping[str, float], head: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return W' and b' in the lm_head's dtype; with no guide that acts, its own values to the bit."""
    dtype = head.weight.dtype
    change, shift = head_change(model, strengths, head)
    weight, bias = head.weight.detach().clone(), None if head.bias is None else head.bias.detach().clone()
    if change is not None:
        weight = change.add_(weight).to(dtype)
    if bias is not None and shift is not None:
        bias = shift.add_(bias).to(dtype)
    if not weight.isfinite().all():
        raise DualHeadError(f"The merged lm_head overflows {dtype}. Load with dtype=bfloat16 or float32 to merge.")
    return weight, bias
