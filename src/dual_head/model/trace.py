"""What guidance did, token by token: the gate, both log-probabilities, the divergence, which tokens rose and fell.

Computed from finished sequences in one pass, so that it is the same after sampling, beams or assisted
decoding, and costs nothing where it is not asked for. It knows guides only through the fused policy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dual_head.guides import States
from dual_head.model.alpha import Strengths
from dual_head.model.score import encode_replies
from dual_head.model.types import Aligned
from dual_head.ops.token_scores import map_tokens

TOP = 3
CHUNK_TOKENS = 64


@dataclass(frozen=True)
class TokenTrace:
    """One generated token.

    gates: {guide: gate in (0, 1)}; base_logp and policy_logp: log-probability of the token in nats; kl:
    KL(policy || base) in nats; promoted and demoted: the token ids whose probability rose and fell most,
    with the change.
    """

    token_id: int
    gates: dict[str, float]
    base_logp: float
    policy_logp: float
    kl: float
    promoted: list[tuple[int, float]]
    demoted: list[tuple[int, float]]


Trace = list[TokenTrace]


@torch.no_grad()
def trace_sequences(
    model: Aligned,
    sequences: Tensor,
    prompt_mask: Tensor,
    *,
    alpha: tuple[Strengths, Tensor],
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
) -> list[Trace]:
    """Trace the tokens of `sequences` [R, T] after the prompts [B, P] that began them; R a multiple of B.

    alpha: strengths and their values [B, guides], from `resolve_alpha`. A row's trace ends with its first
    end-of-sequence token, or before the padding that follows a stop string.
    """
    strengths, values = alpha
    prompt, copies = prompt_mask.shape[1], sequences.shape[0] // prompt_mask.shape[0]
    lengths = _lengths(sequences[:, prompt:], eos_token_id, pad_token_id)
    masks, values = (x.repeat_interleave(copies, 0) for x in (prompt_mask, values))
    encoded, alphas, _ = encode_replies(model, sequences, masks, torch.tensor(lengths), strengths, values)
    traces: list[Trace] = []
    for row, length in enumerate(lengths):
        traces.append([])
        for start in range(prompt, prompt + length, CHUNK_TOKENS):
            at = slice(start - 1, min(start - 1 + CHUNK_TOKENS, prompt + length - 1))  # t - 1 predicts t
            hidden, states = map_tokens(lambda x, row=row, at=at: x[row, at], encoded.hidden, encoded.states)
            labels = sequences[row, at.start + 1 : at.stop + 1]
            traces[-1] += trace_tokens(model, hidden, states, alphas[row, at], labels)
    return traces


def trace_tokens(model: Aligned, hidden: Tensor, states: dict[str, States], alphas: Tensor, labels: Tensor) -> Trace:
    """Trace n tokens, labels [n], from what predicts them: hidden [n, d], states [n, *], alphas [n or 1, guides]."""
    z = model.distributions(hidden, states, alphas, ("base", "policy"), upcast=True)
    policy, base = z["policy"].log_softmax(-1), z["base"].log_softmax(-1)  # [n, V]
    kl = (policy.exp() * (policy - base)).sum(-1).clamp_min(0)
    change = policy.exp() - base.exp()
    rises, falls = change.topk(min(TOP, change.shape[-1])), (-change).topk(min(TOP, change.shape[-1]))
    gates = {
        name: torch.as_tensor(model.guides[name].gate(guide_states)).expand(len(labels)).tolist()
        for name, guide_states in states.items()
    }
    base_logp, policy_logp = (x.gather(1, labels[:, None])[:, 0] for x in (base, policy))
    columns = (base_logp, policy_logp, kl)
    return [
        TokenTrace(
            token_id=token,
            gates={name: values[i] for name, values in gates.items()},
            base_logp=base_logp,
            policy_logp=policy_logp,
            kl=divergence,
            promoted=[(t, v) for t, v in _row(rises, i) if v > 0],
            demoted=[(t, -v) for t, v in _row(falls, i) if v > 0],
        )
        for i, (token, base_logp, policy_logp, divergence) in enumerate(
            zip(labels.tolist(), *(c.tolist() for c in columns), strict=True)
        )
    ]


def _row(top, i: int) -> list[tuple[int, float]]:
    return list(zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True))


def _lengths(new: Tensor, eos_token_id: int | list[int] | None, pad_token_id: int | None) -> list[int]:
    """Count each row's tokens up to its first end-of-sequence token, or up to the padding at its end."""
    width = new.shape[1]
    if pad_token_id is None or not width:
        unpadded = torch.full((len(new),), width, device=new.device)
    else:
        unpadded = width - (new == pad_token_id).flip(1).int().cumprod(1).sum(1)
    if eos_token_id is None or not width:
        return unpadded.tolist()
    ended = torch.isin(new, torch.as_tensor(eos_token_id, device=new.device))
    first = ended.int().argmax(1) + 1
    return torch.where(ended.any(1), first, unpadded).tolist()
