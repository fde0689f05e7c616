"""How far guidance moved finished sequences from the backbone: per-token scalars at any strength per row.

One pass over prompts and replies, vocabulary in chunks. Demonstration and sweeps measure through it; it knows
guides only through the model's own distributions.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dual_head.guides import States
from dual_head.model import policy
from dual_head.model.alpha import Alpha
from dual_head.model.policy import Products
from dual_head.ops.token_scores import Head, reduce_tokens, response_tokens

if TYPE_CHECKING:
    from dual_head.model.aligned import AlignedModel


@torch.no_grad()
def reply_scalars(
    model: "AlignedModel",
    sequences: Tensor,
    prompt_mask: Tensor,
    *,
    alpha: Alpha,
    lengths: Tensor,
    needs: Collection[str] = ("kl",),
) -> dict[str, Tensor]:
    """Sum the named scalars of `token_scores` over each reply: {name: [R]}.

    sequences [R, T]: prompts [R, P], whose padding prompt_mask marks, and replies of lengths [R] after them;
    alpha: as `generate` takes it. Rows in which no guide acts are 0 away from the backbone.
    """
    acting, strengths = model.resolve_alpha(alpha, len(sequences), origin=prompt_mask.shape[1])
    prompt = prompt_mask.shape[1]
    columns = torch.arange(sequences.shape[1], device=sequences.device)
    replied = columns[prompt:] - prompt < lengths.to(sequences.device)[:, None]
    mask = torch.cat([prompt_mask, replied.to(prompt_mask.dtype)], 1)
    responses = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), replied], 1)
    encoded = model.encode(
        sequences,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        guides=acting.names,
        keep=slice(prompt - 1, None),
    )
    alphas = acting.at(strengths.to(sequences.device), columns).expand(-1, len(columns), -1)
    tokens = response_tokens(encoded.hidden, (encoded.states, alphas), sequences, responses)

    fusion, guides = model.config.fusion, [model.guide(name) for name in acting.names]

    def products(hidden: Tensor, states: tuple[dict[str, States], Tensor], wanted: Mapping[str, int]) -> Products:
        return policy.products(model.backbone, model.active_guides(*states), hidden, wanted, fusion=fusion)

    def combine(made: Products, wanted: frozenset[str]) -> dict[str, Tensor]:
        return policy.combine(guides, made, wanted, fusion=fusion, upcast=True)

    head = Head(products, combine)
    scalars = reduce_tokens(tokens, head, needs)
    return {name: x.new_zeros(len(sequences)).index_add(0, tokens.row, x) for name, x in scalars.items()}
