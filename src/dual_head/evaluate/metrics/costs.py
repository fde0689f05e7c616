"""What follows from a system's parts: parameters, forwards per token, weights in memory. Nothing is run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dual_head.guides.base import Parameters
from dual_head.guides.second_model import SecondModel
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha

__all__ = ["MIB", "Cost", "cost_of"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What follows from a system's parts, at its strength.

    parameters: of the model it was made of; added: stored beside it; trained: of those, with a gradient; executed:
    parameters read per generated token; forwards: whole models run per generated token; weights_mib: what all its
    weights take in memory, shared ones once.
    """

    parameters: int
    added: int
    trained: int
    executed: int
    forwards: float
    weights_mib: float


def cost_of(model: Any, alpha: Alpha = None) -> Cost:
    """Count a system's parameters, and its forwards per token at a strength (None for its own)."""
    aligned = isinstance(model, AlignedModel)
    base = Parameters.of(model.backbone.lm if aligned else model)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in _weights(model)) / MIB
    if not aligned:
        size = base.whole
        return Cost(parameters=size, added=0, trained=0, executed=size, forwards=1, weights_mib=weights)
    acting, _ = model.resolve_alpha(alpha, 1)
    added = trained = executed = 0
    forwards = 1.0
    for name, entry in (model.config.guides or {}).items():
        # A map of tokens is stored and no parameter; of a guide that was moved, the map of hidden states is trained.
        sizes = {key: x.numel() for key, x in model.stored().items() if key.startswith(f"{name}.")}
        parameters = {key: size for key, size in sizes.items() if not key.endswith("transfer.vocab_map")}
        added += sum(sizes.values())
        trained += sum(size for key, size in parameters.items() if not entry.get("adapter") or ".transfer." in key)
        if name in acting.names:
            executed += model.guide(name).executed(sum(parameters.values()), base)
            forwards += model.guide(name).extra_forwards
    return Cost(
        parameters=base.whole,
        added=added,
        trained=trained,
        executed=base.whole + executed,
        forwards=forwards,
        weights_mib=weights,
    )


def _weights(model: Any) -> Iterator[Tensor]:
    """Every weight that a system reads, once, those of the models that its guides use among them."""
    modules = [model]
    if isinstance(model, AlignedModel):
        modules.append(model.backbone.lm)
        guides = (model.guide(name) for name in model.config.guides or {})
        modules += [model for guide in guides if isinstance(guide, SecondModel) for model in guide.models]
    by_address = {tensor.data_ptr(): tensor for module in modules for tensor in module.parameters()}
    yield from by_address.values()
