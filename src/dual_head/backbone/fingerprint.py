"""What tells one backbone, or one tokenizer, from another: small enough for a config, equal in any dtype.

It knows weights and vocabularies as values, and nothing of models.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from dual_head.options import build

if TYPE_CHECKING:  # a fingerprint that was written is read without either
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# bf16 keeps 8 bits of mantissa, so one rounding moves a value by at most 2^-9; a guide trained beside a
# bf16 copy must accept the fp32 original, and a fine-tuned sibling must still stand out.
SKETCH_TOLERANCE = 2**-8
SKETCH_VALUES = 4


def digest(value: Any, digits: int = 64) -> str:
    """Hexadecimal digits that name a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


@dataclass(frozen=True)
class Fingerprint:
    """What tells one backbone from another: its sizes, and a sketch of its weights that survives a dtype change."""

    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    sketch: dict[str, list[float]]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fingerprint":
        """Read back what `as_dict` wrote. Errors: values that are missing, or of other types."""
        return build(cls, {f.name: values[f.name] for f in fields(cls) if f.name in values})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON config."""
        return asdict(self)

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits that name these sizes and weights on a screen."""
        return digest(self.as_dict(), 12)

    def differences(self, other: "Fingerprint") -> list[str]:
        """Say, one sentence each, where `other` is not this backbone; empty when it is."""
        differences = self.size_differences(other)
        if not differences and (names := self._unlike(other)):
            differences.append(f"the same sizes but other weights ({', '.join(names[:3])})")
        return differences

    def size_differences(self, other: "Fingerprint") -> list[str]:
        """Say where architecture and sizes of `other` are not these."""
        return [
            f"{name} {getattr(self, name)} against {getattr(other, name)}"
            for name in ("architecture", "hidden_size", "vocab_size", "num_layers")
            if getattr(self, name) != getattr(other, name)
        ]

    def distance(self, other: "Fingerprint", names: Iterable[str]) -> float:
        """How far the sketched values of these weights are apart: |w - w'| / |w|, infinite where there are none."""
        pairs = [pair for name in names for pair in zip(self.sketch[name], other.sketch[name], strict=True)]
        size = math.hypot(*(one for one, _ in pairs))
        return math.hypot(*(one - two for one, two in pairs)) / size if size else math.inf

    def _unlike(self, other: "Fingerprint") -> list[str]:
        # Quantised weights have no floats to compare: whatever both sides could sketch is compared.
        names = self.sketch.keys() & other.sketch.keys()
        return sorted(name for name in names if not all(map(_close, self.sketch[name], other.sketch[name])))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SKETCH_TOLERANCE, abs_tol=1e-6)


def sketch(parameter: "Tensor") -> list[float]:
    """A few values of a weight, evenly spaced, in fp32."""
    import torch

    flat = parameter.detach().flatten()
    picks = torch.linspace(0, flat.numel() - 1, SKETCH_VALUES, dtype=torch.float64).long()
    return flat[picks.to(flat.device)].float().tolist()


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Name a tokenizer by its token strings and their ids: equal exactly when ids mean the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return digest(vocabulary, 16)
