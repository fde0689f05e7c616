"""Finished sequences in one pass, and how far guidance moved them: per-token scalars at any strength per row.

    row         [ . p p p | r r r e . ]        padding, prompt [R, P], a reply that ends with e, padding
    mask          0 1 1 1   1 1 1 1 0
    positions     0 0 1 2   3 4 5 6 6
    scored              [ r r r e ]            each by the logits of the position before it

Demonstration, sweeps and traces measure through it; it knows guides only through the policy's distributions.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dual_head.guides import States
from dual_head.model import policy
from dual_head.model.alpha import Alpha, Strengths
from dual_head.model.decode_step import Encoded
from dual_head.model.policy import Products
from dual_head.model.types import Aligned
from dual_head.ops.token_scores import Head, reduce_tokens, response_tokens


class Replies(NamedTuple):
    """Finished sequences after one pass: alphas [R, T, acting guides], replied bool [R, T - P]."""

    encoded: Encoded
    alphas: Tensor
    replied: Tensor


def encode_replies(
    model: Aligned, sequences: Tensor, prompt_mask: Tensor, lengths: Tensor, strengths: Strengths, values: Tensor
) -> Replies:
    """Run sequences [R, T]: prompts whose padding prompt_mask [R, P] marks, and replies of lengths [R] after them.

    strengths, values [R or 1, acting guides]: as `resolve_alpha` gives them.
    """
    prompt = prompt_mask.shape[1]
    columns = torch.arange(sequences.shape[1], device=sequences.device)
    replied = columns[prompt:] - prompt < lengths.to(sequences.device)[:, None]
    mask = torch.cat([prompt_mask, replied.to(prompt_mask.dtype)], 1)
    encoded = model.encode(
        sequences,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        guides=strengths.names,
        strengths=(strengths, values),
        keep=slice(prompt - 1, None),
    )
    alphas = strengths.at(values.to(sequences.device), columns).expand(-1, len(columns), -1)
    return Replies(encoded, alphas, replied)


class TokenScalars(NamedTuple):
    """Named scalars of n reply tokens: row [n] of each, labels [n] as ids, scalars and gates {name: [n]}."""

    row: Tensor
    labels: Tensor
    scalars: dict[str, Tensor]
    gates: dict[str, Tensor]


@torch.no_grad()
def token_scalars(
    model: Aligned,
    sequences: Tensor,
    prompt_mask: Tensor,
    *,
    alpha: Alpha,
    lengths: Tensor,
    needs: Collection[str],
) -> TokenScalars:
    """Compute the named scalars of `ops.scalars` at every token of each reply, and the gate of every acting guide.

    sequences, prompt_mask, lengths: as `encode_replies` takes them; alpha: as `generate` takes it. "reward_logps" is
    left out unless exactly one guide acts: it is of that guide by itself.
    """
    strengths, values = model.resolve_alpha(alpha, len(sequences), origin=prompt_mask.shape[1])
    encoded, alphas, replied = encode_replies(model, sequences, prompt_mask, lengths, strengths, values)
    responses = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), replied], 1)
    tokens = response_tokens(encoded.hidden, (encoded.states, alphas), sequences, responses)

    guides, fusion = model.guides, model.config.fusion
    acting_guides = [guides[name] for name in strengths.names]

    def products(hidden: Tensor, states: tuple[dict[str, States], Tensor], rows: Mapping[str, int]) -> Products:
        return policy.products(guides.backbone, guides.active(*states), hidden, rows, fusion=fusion)

    def combine(at_tokens: Products, names: frozenset[str]) -> dict[str, Tensor]:
        return policy.combine(acting_guides, at_tokens, names, fusion=fusion, upcast=True)

    names = set(needs) - (set() if len(acting_guides) == 1 else {"reward_logps"})
    gates = {
        name: torch.as_tensor(guides[name].gate(states)).expand(len(tokens.labels))
        for name, states in tokens.states[0].items()
    }
    return TokenScalars(tokens.row, tokens.labels, reduce_tokens(tokens, Head(products, combine), names), gates)


def reply_scalars(
    model: Aligned,
    sequences: Tensor,
    prompt_mask: Tensor,
    *,
    alpha: Alpha,
    lengths: Tensor,
    needs: Collection[str] = ("kl",),
) -> dict[str, Tensor]:
    """Sum what `token_scalars` gives over each reply: {name: [R]}. Rows in which no guide acts are 0 away."""
    at = token_scalars(model, sequences, prompt_mask, alpha=alpha, lengths=lengths, needs=needs)
    return {name: x.new_zeros(len(sequences)).index_add(0, at.row, x) for name, x in at.scalars.items()}
