"""The terms of the papers' losses, reply by reply from whole logits in float64: the oracle of tests/papers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from models import BOS, EOS
from torch import Tensor

# Pairs of different lengths, so that rows are padded; one reply is cut short, without EOS.
PAIRS = [
    {"prompt_ids": [BOS, 5, 6, 7], "chosen_ids": [8, 30, 9, EOS], "rejected_ids": [11, EOS]},
    {"prompt_ids": [BOS, 40], "chosen_ids": [17, EOS], "rejected_ids": [9, 10, 11, 12, 60]},
]


@dataclass(frozen=True)
class Logits:
    """What is said at every position of one text, each [T, V]; `head` is a base head that is trained, if any."""

    base: Tensor
    delta: Tensor
    head: Tensor | None = None

    @property
    def policy(self) -> Tensor:
        return (self.base if self.head is None else self.head) + self.delta


LogitsOf = Callable[[Tensor], Logits]  # ids [1, T] to the logits of its T positions


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def terms(logits_of: LogitsOf, prompt: Sequence[int], reply: Sequence[int]) -> dict[str, float]:
    """Sums of log-probabilities of one reply, and its means per token of KL and of the squared norm."""
    with torch.no_grad():
        said = logits_of(torch.tensor([[*prompt, *reply]]))
    assert said.base.dtype == torch.float64
    at = range(len(prompt) - 1, len(prompt) + len(reply) - 1)  # position t predicts token t + 1
    base, policy = said.base.log_softmax(-1), said.policy.log_softmax(-1)
    held = policy if said.head is None else said.head.log_softmax(-1)
    return {
        "policy": sum(policy[t, token].item() for t, token in zip(at, reply, strict=True)),
        "base": sum(base[t, token].item() for t, token in zip(at, reply, strict=True)),
        "kl": sum((held[t].exp() * (held[t] - base[t])).sum().item() for t in at) / len(reply),
        "l2": sum((said.delta[t] ** 2).sum().item() for t in at) / len(reply),
    }


def expected(
    logits_of: LogitsOf, *, beta: float, lambda_kl: float = 0.0, lambda_l2: float = 0.0, reference_free: bool = False
) -> dict[str, float]:
    """The mean over PAIRS of every term, and "loss", their weighted sum."""
    totals = {"preference": 0.0, "kl": 0.0, "norm": 0.0}
    for pair in PAIRS:
        chosen, rejected = (
            terms(logits_of, pair["prompt_ids"], pair[f"{side}_ids"]) for side in ("chosen", "rejected")
        )
        margin = chosen["policy"] - rejected["policy"]
        if not reference_free:
            margin -= chosen["base"] - rejected["base"]
        totals["preference"] += softplus(-beta * margin) / len(PAIRS)
        totals["kl"] += (chosen["kl"] + rejected["kl"]) / 2 / len(PAIRS)
        totals["norm"] += (chosen["l2"] + rejected["l2"]) / 2 / len(PAIRS)
    loss = totals["preference"] + lambda_kl * totals["kl"] + lambda_l2 * totals["norm"]
    return {**totals, "loss": loss}
