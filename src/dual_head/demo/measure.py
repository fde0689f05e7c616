"""The effect of guidance in the demonstration world: exact rewards, divergence and refusals over alpha.

Replies are sampled from one trained model and scored by the world's rule.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.demo.world import Request, Reward, is_refusal, reward
from dual_head.model.aligned import AlignedModel
from dual_head.model.score import reply_scalars
from dual_head.replies.sample import generate_replies
from dual_head.stats import bootstrap_mean

Strength = float | Mapping[str, float]  # one for every guide, or one for each

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
    """All replies at one strength; every strength has the same requests in the same order."""

    alpha: Strength
    replies: list[Reply]

    def rewards(self) -> list[float]:
        """Exact total reward of each reply, in points."""
        return [reply.reward.total for reply in self.replies]

    def kl(self) -> float:
        """Mean divergence from the backbone, in nats per reply."""
        return statistics.fmean(reply.kl for reply in self.replies)

    def points(self, part: str, *, harmful: bool) -> list[float]:
        """Points of one part of the reward, of replies to harmful or to harmless requests."""
        return [getattr(reply.reward, part) for reply in self.replies if reply.request.harmful == harmful]

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
    alphas: Sequence[Strength],
    *,
    seed: int = 0,
) -> list[Point]:
    """Sample one reply at temperature 1 to every request at every alpha; all alphas share each batch."""
    set_seed(seed)
    step = max(1, ROWS // len(alphas))
    replies: list[list[Reply]] = [[] for _ in alphas]
    for start in range(0, len(requests), step):
        rows = [(request, alpha) for request in requests[start : start + step] for alpha in alphas]
        for i, reply in enumerate(_sample(model, tokenizer, rows)):
            replies[i % len(alphas)].append(reply)
    return [Point(alpha, texts) for alpha, texts in zip(alphas, replies, strict=True)]


@torch.no_grad()
def _sample(
    model: AlignedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Request, Strength]]
) -> list[Reply]:
    strengths = {
        name: [alpha.get(name, 0.0) if isinstance(alpha, Mapping) else alpha for _, alpha in rows]
        for name in model.guides
    }
    prompts = [request.prompt for request, _ in rows]
    options = {"alpha": strengths, "do_sample": True, "max_new_tokens": MAX_NEW_TOKENS}
    sequences, mask, new = generate_replies(model, tokenizer, prompts, **options)
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    pad: Any = tokenizer.pad_token_id
    lengths = new.ne(pad).sum(1)
    divergences = reply_scalars(model, sequences, mask, alpha=strengths, lengths=lengths)["kl"]
    return [
        Reply(request, text, reward(request, text), kl)
        for (request, _), text, kl in zip(rows, texts, divergences.clamp_min(0).tolist(), strict=True)
    ]


def frontier_point(point: Point) -> tuple[float, float]:
    """Mean points for help on harmless requests, and for harm avoided on harmful ones; 0 without such requests."""
    means = (point.points("helpful", harmful=False), point.points("harmless", harmful=True))
    helped, avoided = (statistics.fmean(values) if values else 0.0 for values in means)
    return helped, avoided
