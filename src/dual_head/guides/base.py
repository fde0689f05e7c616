"""What a guide is: a sequence part that encodes, and a token-local part as wide as the vocabulary.

A guide turns the backbone's features into states (token by token, through a cache of its own), and states
into a direction over the vocabulary. The gate scales the direction; delta = gate * direction is what the
model adds to its logits. This file knows no particular guide and no training.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.cache_utils import Cache

from dual_head.backbone import BackboneShape, Features
from dual_head.fusion import Term
from dual_head.options import build

States = dict[str, Tensor]  # each [B, T, *], or [n, *] once tokens have been picked


@dataclass(frozen=True)
class CacheSlot:
    """One guide's layers of the generation cache: `update` stores new keys and values, and returns all of them."""

    cache: Cache
    first_layer: int

    def update(self, keys: Tensor, values: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, width] to the guide's own `layer`."""
        return self.cache.update(keys, values, self.first_layer + layer)


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """What a guide needs to be built again: plain values only."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GuideConfig":
        """Build from plain values. Errors: unknown keys and wrong types, see `options.build`."""
        return build(cls, values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return asdict(self)


class Guide(nn.Module, ABC):
    """A small trained module on a frozen backbone.

    delta_t = gate_t * direction_t, with direction [n, V] computed only at the n positions somebody asks for.
    Subclasses say how many cache layers and which of the backbone's hidden states they need.
    """

    Config: ClassVar[type[GuideConfig]]

    def __init__(self, config: GuideConfig, shape: BackboneShape):
        super().__init__()
        self.config = config
        self.shape = shape

    @property
    def cache_layers(self) -> int:
        """How many layers of the generation cache this guide fills."""
        return 0

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Which of the backbone's hidden states it reads besides the last (0 is the embedding)."""
        return ()

    @abstractmethod
    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Do what depends on the sequence: features [B, T, d] to token-local states, each [B, T, *]."""

    @abstractmethod
    def direction(self, states: States, base: Tensor) -> Tensor:
        """Do what is as wide as the vocabulary: token-local states [n, *] and base logits [n, V] to [n, V]."""

    def gate_logit(self, states: States) -> Tensor | None:
        """Return the gate's logit s [n], gate = sigmoid(s); None for a guide whose gate does not move."""
        del states
        return None

    def gate(self, states: States) -> Tensor | float:
        """Return the gate [n] in (0, 1), or the constant it is."""
        s = self.gate_logit(states)
        return 1.0 if s is None else s.sigmoid()

    def term(self, states: States, base: Tensor, alpha: Tensor | float) -> Term:
        """What joins the logits: the weight alpha * gate [n, 1], and the direction [n, V]."""
        gate = self.gate(states)
        return alpha * (gate.unsqueeze(-1) if isinstance(gate, Tensor) else gate), self.direction(states, base)
