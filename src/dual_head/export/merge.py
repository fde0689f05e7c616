"""Merge: a plain model whose lm_head holds the guides.

    lm_head' (h) = lm_head(h + sum_k a_k hidden_delta_k) + sum_k a_k logit_delta_k / s,      as `fold` has it

It knows models and configs; `fold` says which guides fold, and `folder` writes the result.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dual_head.export.fold import acting_strengths, fold, plain_head
from dual_head.guides import kind_of
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha


@dataclass(frozen=True)
class Folded:
    """One guide as it went into the lm_head; rank None is full."""

    name: str
    kind: str
    rank: int | None
    alpha: float


@torch.no_grad()
def merge(model: AlignedModel, *, alpha: Alpha = None) -> PreTrainedModel:
    """Fold the guides that act at `alpha` into the lm_head of a new, plain model.

        W' = W (I + sum a E) + sum a D / s,  b' = b + W sum a c + sum a c' / s

    alpha: None for the defaults, a number, or {name: number}; a guide at 0 is left out. The new model is of the
    backbone's own class and shares the decoder's weights with it in memory, so it is frozen: export and load
    it, or deepcopy it, to train. Only its lm_head [V, d] is new, and untied. Errors: a guide that is not a linear
    map of h, or does not fit into a plain lm_head.
    """
    strengths = acting_strengths(model, alpha)
    head = plain_head(model.backbone)
    weight, bias = fold(model, strengths, head)
    lm = model.backbone.lm
    merged = _shared_copy(lm)
    lm_head = merged.get_output_embeddings()
    assert isinstance(lm_head, nn.Linear)
    lm_head.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        lm_head.bias = nn.Parameter(bias, requires_grad=False)
    _untie(merged.config)
    merged.all_tied_weights_keys = merged.get_expanded_tied_weights_keys(all_submodels=True)
    return merged


def folded(model: AlignedModel, *, alpha: Alpha = None) -> list[Folded]:
    """Say which guides act at `alpha` and what they are, in the order of the config."""
    acting = [(name, model.guide(name), a) for name, a in acting_strengths(model, alpha).items()]
    return [Folded(name, kind_of(guide), guide.config.as_dict().get("rank"), a) for name, guide, a in acting]


def _shared_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules and configs, but not its tensors: new parameters over the same memory."""
    memo: dict[int, object] = {
        # A quantised parameter carries more than its data, and is handed on as it is.
        id(p): nn.Parameter(p.detach(), requires_grad=False) if type(p) is nn.Parameter else p
        for p in lm.parameters()
    }
    memo |= {id(buffer): buffer for buffer in lm.buffers()}
    return copy.deepcopy(lm, memo)


def _untie(config: PreTrainedConfig) -> None:
    """Say in a config and those nested in it that the lm_head is its own."""
    config.tie_word_embeddings = False
    for name in config.sub_configs:
        nested = getattr(config, name, None)
        if isinstance(nested, PreTrainedConfig):
            _untie(nested)
