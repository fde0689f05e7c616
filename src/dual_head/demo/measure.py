"""What guidance does in the demonstration world: exact rewards, divergence and refusals over alpha.

It samples replies and scores them by the world's rule. It knows one trained model, and no training.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.demo.world import Request, Reward, is_refusal, reward
from dual_head.intervals import bootstrap_mean
from dual_head.model import AlignedModel
from dual_head.reductions import reduce_tokens, response_tokens
from dual_head.text import encode_prompts

MAX_NEW_TOKENS = 56  # longer than any reply of the world
ROWS = 256  # sampled at a time


@dataclass(frozen=True)
class Reply:
    """One sampled reply: its request, text, exact reward, and sum_t KL(policy || base) in nats."""

    request: Request
    text: str
    reward: Reward
    kl: float

    @property
    def refused(self) -> bool:
        """Whether it refuses."""
        return is_refusal(self.text)


@dataclass(frozen=True)
class Point:
    """All replies at one strength; the same requests in the same order at every other."""

    alpha: float
    replies: list[Reply]

    def rewards(self) -> list[float]:
        """Exact total reward of each reply, in points."""
        return [reply.reward.total for reply in self.replies]

    def kl(self) -> float:
        """Mean divergence from the backbone, in nats per reply."""
        return statistics.fmean(reply.kl for reply in self.replies)

    def refusals(self, *, harmful: bool) -> float:
        """Share of refusals among harmful, or among harmless requests."""
        return statistics.fmean(reply.refused for reply in self.replies if reply.request.harmful == harmful)

    def gain_over(self, other: "Point") -> tuple[float, tuple[float, float]]:
        """Mean paired gain in exact reward over another strength, with its 95% bootstrap interval."""
        gains = [a - b for a, b in zip(self.rewards(), other.rewards(), strict=True)]
        return statistics.fmean(gains), bootstrap_mean(gains)


def measure(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    alphas: Sequence[float],
    *,
    seed: int = 0,
) -> list[Point]:
    """Sample one reply at temperature 1 to every request at every alpha; all alphas share each batch."""
    set_seed(seed)
    step = max(1, ROWS // len(alphas))
    replies: dict[float, list[Reply]] = {alpha: [] for alpha in alphas}
    for start in range(0, len(requests), step):
        some = requests[start : start + step]
        rows = [(request, alpha) for request in some for alpha in alphas]
        for (_, alpha), reply in zip(rows, _sample(model, tokenizer, rows), strict=True):
            replies[alpha].append(reply)
    return [Point(alpha, replies[alpha]) for alpha in alphas]


@torch.no_grad()
def _sample(
    model: AlignedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Request, float]]
) -> list[Reply]:
    batch = encode_prompts([request.prompt for request, _ in rows], tokenizer)
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    strengths = [alpha for _, alpha in rows]
    sequences = model.generate(ids, attention_mask=mask, alpha=strengths, do_sample=True, max_new_tokens=MAX_NEW_TOKENS)
    new = sequences[:, ids.shape[1] :]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    divergences = _divergence(model, sequences, mask, strengths, ends=(new != tokenizer.pad_token_id).sum(1))
    return [
        Reply(request, text, reward(request, text), kl)
        for (request, _), text, kl in zip(rows, texts, divergences, strict=True)
    ]


def _divergence(
    model: AlignedModel, sequences: Tensor, prompt_mask: Tensor, alphas: Sequence[float], *, ends: Tensor
) -> list[float]:
    """sum_t KL(policy || base) of each row, over its reply and the token that ends it."""
    names, strengths = model.resolve_alpha(list(alphas), len(sequences))
    if not names:
        return [0.0] * len(sequences)
    (name,) = names
    length = prompt_mask.shape[1]
    replied = torch.arange(sequences.shape[1] - length, device=ends.device) < ends[:, None]
    mask = torch.cat([prompt_mask, replied.long()], 1)
    responses = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), replied], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    encoded = model.encode(sequences, attention_mask=mask, position_ids=positions, guides=names)
    per_token = strengths[:, 0].to(sequences.device)[:, None].expand(sequences.shape)
    states = {**encoded.states[name], "alpha": per_token}
    tokens = response_tokens(encoded.hidden, states, sequences, responses)

    def head(hidden: Tensor, states: dict[str, Tensor]):
        base = model.backbone.logits(hidden)
        return base, model.guide(name).term(states, base, states["alpha"][:, None])

    vocab_size, fusion = model.backbone.shape.vocab_size, model.config.fusion
    kl = reduce_tokens(tokens, head, {"kl"}, vocab_size=vocab_size, fusion=fusion)["kl"]
    return kl.new_zeros(len(sequences)).index_add(0, tokens.row, kl.clamp_min(0)).tolist()  # rounding can pass below 0
