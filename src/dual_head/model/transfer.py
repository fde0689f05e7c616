"""A guide on another backbone than the one it was trained on: widths pooled, layers matched by depth, tokens mapped.

    h -> pool(h) [trained width], or A h with a trained adapter A that starts as that pooling
    logit_delta [V trained] -> logit_delta'_v = logit_delta_map(v), 0 where token v has no counterpart

    layers of a guide trained on 4      1  2  3  4
    read from a backbone of 8           2  4  6  8        and from one of 2: 1 1 2 2

It knows sizes and tensors; which backbones and tokenizers go together is decided elsewhere.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.layers import pool

UNMAPPED = -1


class Transfer(nn.Module):
    """What stands between a guide of one shape and a backbone of another.

    adapter: learn the map of hidden states instead of pooling them; vocab_map: [V backbone] ids of the
    guide's tokens, -1 where there is none; None where ids mean the same in both.
    """

    def __init__(
        self,
        guide: BackboneShape,
        backbone: BackboneShape,
        *,
        adapter: bool = False,
        vocab_map: Tensor | None = None,
    ):
        super().__init__()
        self.guide, self.backbone = guide, backbone
        self.adapter = nn.Linear(backbone.hidden_size, guide.hidden_size, bias=False) if adapter else None
        self.register_buffer("vocab_map", vocab_map)
        if self.adapter is not None:
            with torch.no_grad():  # pool() of the unit vectors, transposed, is the matrix that pools
                self.adapter.weight.copy_(pool(torch.eye(backbone.hidden_size), guide.hidden_size).T)

    def layer(self, index: int) -> int:
        """Find the backbone's layer at the same relative depth as the guide's `index`."""
        layer = int(index * self.backbone.num_layers / self.guide.num_layers + 0.5)
        return max(1, layer) if index else 0  # the embedding stands for no layer but itself

    def features(self, features: Features, read: tuple[int, ...]) -> Features:
        """Bring the backbone's features to the guide's width and its numbering of layers."""
        layers = {i: self._narrow(features.layers[self.layer(i)]) for i in read}
        return dataclasses.replace(features, hidden=self._narrow(features.hidden), layers=layers)

    def _narrow(self, hidden: Tensor) -> Tensor:
        if self.adapter is None:
            return pool(hidden, self.guide.hidden_size)
        return self.adapter(hidden.to(self.adapter.weight.dtype))

    def logit_delta(self, logit_delta: Tensor) -> Tensor:
        """Bring a logit delta [n, V guide] to [n, V backbone]; 0 for tokens the guide does not know."""
        if self.vocab_map is not None:
            assert isinstance(self.vocab_map, Tensor)
            has_token = self.vocab_map != UNMAPPED
            return logit_delta[..., self.vocab_map.clamp_min(0)] * has_token
        return F.pad(logit_delta, (0, self.backbone.vocab_size - logit_delta.shape[-1]))  # a negative number cuts
