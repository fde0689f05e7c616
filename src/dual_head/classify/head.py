"""The class head: hidden states to class logits, and the loss of those.

It knows tensors, and no backbone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.errors import DualHeadError

IGNORED = -100  # a label that is not there


class ClassHead(nn.Module):
    """Hidden states [B, d] to class logits [B, K] in fp32: W h + b, or W_2 gelu(W_1 dropout(h) + b_1) + b_2."""

    def __init__(self, inputs: int, labels: int, *, kind: str, width: int | None, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        width = width or inputs
        self.inner = nn.Linear(inputs, width) if kind == "mlp" else None
        self.score = nn.Linear(width if kind == "mlp" else inputs, labels, bias=kind == "mlp")
        for layer in (self.inner, self.score):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Score [B, d]."""
        with torch.autocast(hidden.device.type, enabled=False):
            x = self.dropout(hidden.float())
            if self.inner is not None:
                x = self.dropout(F.gelu(self.inner(x)))
            return self.score(x)


def last_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Index [B] of each row's last token that is not masked, wherever the padding is and whatever its id."""
    length = input_ids.shape[1]
    if attention_mask is None:
        return torch.full((len(input_ids),), length - 1, device=input_ids.device)
    places = torch.arange(length, device=attention_mask.device)
    return torch.where(attention_mask.bool(), places, -1).max(-1).values.clamp_min(0)


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, *, multi_label: bool) -> Tensor:
    """Sum over rows of the cross-entropy [] of logits [B, K]; for several labels, of the mean of the K binary ones.

    labels: [B] with -100 for none, or [B, K] shares or zeros and ones; weights [K]: of the classes, and with
    multi_label binary_cross_entropy's pos_weight. Errors: labels of another shape, where any is there.
    """
    classes = logits.shape[1]
    if labels.dim() == 2 and labels.shape[1] == classes:
        labelled = labels[:, 0] != IGNORED
        logits, labels = logits[labelled], labels[labelled]
    elif labels.dim() == 2 or multi_label:
        if (labels != IGNORED).any():
            kind = f"[B, {classes}], a 0 or 1" if multi_label else f"[B], or [B, {classes}], a share"
            raise DualHeadError(f"Labels of shape {list(labels.shape)} do not fit: pass {kind} for each class.")
        return logits.sum() * 0.0  # a batch without any label
    if multi_label:
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits), pos_weight=weights, reduction="none")
        return each.mean(-1).sum()
    targets = labels if labels.dim() == 1 else labels.to(logits)
    return F.cross_entropy(logits, targets, weight=weights, ignore_index=IGNORED, reduction="sum")


def weights_of(values: list[float] | None) -> Tensor | None:
    """The weights [K] of the classes as the loss takes them. Errors: negative, not finite, or all 0."""
    if values is None:
        return None
    weights = torch.tensor(values, dtype=torch.float32)
    if not weights.isfinite().all() or weights.min() < 0 or not weights.any():
        listed = ", ".join(f"{weight:g}" for weight in values)
        raise DualHeadError(
            f"class_weights are finite, at least 0 and not all 0, unlike {listed}. Say one for each label."
        )
    return weights
