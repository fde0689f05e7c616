"""One forward for a backbone and for guides that are the backbone with small changes: more rows, the same weights.

    x   [ B rows of the backbone | B rows of guide "a" | B rows of guide "b" ]
    y   [        x W' + b        | + s_a (x A_a') B_a' | + s_b (x A_b') B_b' ]        W read once for all of them

A step of decoding takes as long as reading the weights, and here they are read once. A part may also shift what layers
give, by a number for each of its rows. It knows decoders, caches and changes, and nothing of what guides add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from dual_head.backbone.cache import KeysValues
from dual_head.backbone.decoder import Backbone, Decoder
from dual_head.backbone.views import shared_view
from dual_head.ops.small_matmul import product


@dataclass(frozen=True)
class LowRank:
    """What is added to a linear layer's output: scale * up(down(x))."""

    down: nn.Linear
    up: nn.Linear
    scale: float

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """y += scale (x A') B', in place; y [n, out] and x [n, in]."""
        a, b = self.down.weight, self.up.weight
        if a.dtype == y.dtype:
            y.addmm_(F.linear(x, a), b.T, alpha=self.scale)  # in place, since y may be as large as a prompt
        else:
            y += F.linear(F.linear(x.to(a.dtype), a), b) * self.scale


Changes = Mapping[str, LowRank]  # by the layer's name in the causal LM
Shifts = Mapping[
    int, Tensor
]  # what is added to a layer's output, {layer: [B or 1, T or 1, d]}, as `Decoder` counts them


@dataclass(frozen=True)
class JointPart:
    """A model that is the backbone with changes, or without any, as rows of the backbone's forward.

    layer: the first of its layers of the cache, counted from the first of its guide's.
    """

    changes: Changes
    layer: int = 0


@dataclass(frozen=True)
class Prompted:
    """How the parts of a guide read a step behind prompts of their own.

    positions [parts B, 1] of the new tokens; visible: bool [parts B, P + K], which keys they see; front: for each
    layer, the prompts' keys and values [parts, heads, P, width].
    """

    positions: Tensor
    visible: Tensor
    front: Sequence[KeysValues]

    @property
    def width(self) -> int:
        """P."""
        return self.front[0][0].shape[-2]


class JointLayer(nn.Module):
    """A layer of the backbone for the rows of several parts [parts n, in], each part with a change or None."""

    def __init__(self, layer: nn.Module, changes: Sequence[LowRank | None]):
        super().__init__()
        self._layer = (layer,)  # the backbone's, so not a submodule of this
        self._changes = tuple(changes)

    @property
    def weight(self) -> Tensor:
        """The layer's weight, which architectures look at."""
        return self._layer[0].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self._layer[0].bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, T, in] to [rows, T, out]."""
        # rows of x and y   [ backbone | guide "a" | guide "b" ]; of y each chunk gets its own guide's change, in place
        (layer,) = self._layer
        y = product(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)  # type: ignore[arg-type]
        parts = len(self._changes)
        outputs, inputs = y.view(-1, y.shape[-1]).chunk(parts), x.reshape(-1, x.shape[-1]).chunk(parts)
        for change, part_output, part_input in zip(self._changes, outputs, inputs, strict=True):
            if change is not None:
                change.add_to(part_output, part_input)
        return y


class JointDecoder:
    """A backbone with changes, or without, for several at once: as one decoder of more rows.

    parts: what each of them adds to linear layers, {} for the backbone itself.
    """

    def __init__(self, backbone: Backbone, parts: Sequence[Changes]):
        view = shared_view(backbone.lm)
        for name, layer in list(view.named_modules()):
            layer_changes = [changes.get(name) for changes in parts]
            if type(layer) is nn.Linear or any(layer_changes):
                view.set_submodule(name, JointLayer(layer, layer_changes))
        self._decoder = Decoder(view)
        self._parts = len(parts)
        self._watched = list(backbone.modules())

    def usable(self) -> bool:
        """Whether there is no gradient, no graph, and no hook on a layer, which would miss these rows."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in self._watched)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        layers: tuple[int, ...] = (),
        shifts: Sequence[Shifts] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the same tokens [B, T] for all: hidden [parts B, T, d], and layers of the first, {i: [B, T, d]}.

        attention_mask of padding [B, K] and positions [B, T] are those of every part; a mask [parts B, 1, T, K] and
        positions [parts B, T] are of each. shifts: of every part, {} for none.
        """
        n, rows = self._parts, len(input_ids)
        if n > 1:
            input_ids = input_ids.repeat(n, 1)
            if attention_mask is not None and attention_mask.dim() == 2:
                attention_mask = attention_mask.repeat(n, 1)
            if position_ids is not None and len(position_ids) < n * rows:
                position_ids = position_ids.expand(rows, -1).repeat(n, 1)
        output, hidden_layers = self._decoder(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            layers=layers,
            shifts=_of_all_rows(shifts, rows),
        )
        return output.last_hidden_state, {i: x[:rows] for i, x in hidden_layers.items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [parts B, T, d] into the logits of every part [parts B, T, V]."""
        return self._decoder.logits(hidden)


def _of_all_rows(shifts: Sequence[Shifts], rows: int) -> dict[int, Tensor]:
    """What is added to the rows of all parts: {layer: [parts B, 1, d]}, 0 where a part has nothing."""
    result = {}
    for layer in sorted({layer for part in shifts for layer in part}):
        template = next(part[layer] for part in shifts if layer in part)
        nothing = template.new_zeros(rows, *template.shape[1:])
        result[layer] = torch.cat([part[layer].expand_as(nothing) if layer in part else nothing for part in shifts])
    return result
