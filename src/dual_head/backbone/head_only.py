"""A causal LM without its decoder: what its own forward does to hidden states, for any of them.

It knows no architecture: what a model does after its decoder is run, or tried, and not looked up.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dual_head.errors import DualHeadError

LOUD = 100.0  # a logit that soft-capping bends


def without_decoder(lm: PreTrainedModel) -> PreTrainedModel:
    """A second view of `lm` whose decoder is replaced by a pass-through.

    What the model's own forward does after the decoder (bias, soft-capping, scaling) then applies to any
    hidden state, for every architecture and without a table of them.
    """
    view = copy.copy(lm)
    view.__dict__.pop("forward", None)  # accelerate binds the original module's forward here
    view._modules = {**lm._modules, lm.base_model_prefix: _Passthrough(lm.base_model)}
    return view


def does_nothing_but_its_head(lm: PreTrainedModel) -> bool:
    """Whether logits are the lm_head of the decoder's hidden states, with nothing before it or after it.

    Tried rather than looked up, with something in its place whose logits are large enough for anything to show.
    """
    head, view = lm.get_output_embeddings(), without_decoder(lm)
    name = next((name for name, module in lm._modules.items() if module is head), None)
    hidden = torch.linspace(-1, 1, 6, dtype=lm.dtype, device="cpu").view(1, 2, 3)
    stand_in = _StandIn(torch.linspace(-LOUD, LOUD, 8, dtype=lm.dtype, device="cpu").view(1, 2, 4))
    if name is None:
        return False
    view._modules[name] = stand_in
    try:
        with torch.no_grad():
            logits = view(input_ids=None, inputs_embeds=hidden, use_cache=False, return_dict=True).logits
    except Exception:  # a model's own code may need more of its head than a forward
        return False
    pairs = ((stand_in.input, hidden), (logits, stand_in.logits))
    return all(x is not None and x.dtype == y.dtype and x.tolist() == y.tolist() for x, y in pairs)


class _Hidden:
    """The output of a decoder of which only the last hidden state is read.

    Made for every token that is decoded, so no `ModelOutput`, which costs more than a small product.
    """

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        """Nothing: what else a model's forward reads, such as its cache or its experts' choices, it hands on."""
        if name.startswith("__"):
            raise AttributeError(name)


class _Passthrough(nn.Module):
    """Stands where the decoder stood and returns the hidden states it is given."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self._stood = (decoder,)  # not a submodule

    def __getattr__(self, name: str) -> Any:  # a head may look something up, as Falcon-H1's does a factor
        return getattr(vars(self)["_stood"][0], name)

    def forward(self, *_args, inputs_embeds: Tensor | None = None, **_kwargs) -> _Hidden:
        if inputs_embeds is None:
            name = type(self._stood[0]).__name__
            raise DualHeadError(
                f"The model around {name} hands no embeddings on, and hidden states take their place on the way to the "
                "lm_head. Choose another backbone."
            )
        return _Hidden(inputs_embeds)

    @property
    def decoder(self) -> "_Passthrough":
        return self  # OPT's head calls model.decoder rather than model


class _StandIn(nn.Module):
    """Stands where the lm_head stood: remembers its input and returns fixed logits."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits, self.input = logits, None

    def forward(self, hidden: Tensor) -> Tensor:
        self.input = hidden
        return self.logits
