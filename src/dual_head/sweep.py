"""What each strength does to the replies: divergence, length, repetition and rewards over alpha.

All strengths of one prompt are generated in one batch, after one pass over the prompt that they share; one
more pass over the finished sequences measures them against the backbone. Replies do not depend on where a
sweep was stopped and resumed. It knows prompts, strengths and numbers; nothing of files, or of what a reward
means.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, set_seed

from dual_head.backbone import context_length
from dual_head.divergence import reply_scalars
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.intervals import bootstrap_mean
from dual_head.text import DEFAULT_NEW_TOKENS, Prompt, encode_prompts
from dual_head.text_metrics import distinct_n, diversity

if TYPE_CHECKING:
    from dual_head.model import AlignedModel

METRICS = ("kl", "kl_per_token", "moved", "tokens", "distinct_1", "distinct_2", "distinct_3", "diversity")

Reward = Callable[[Prompt, str], float]  # (prompt, reply) to a finite number


@dataclass(frozen=True, kw_only=True)
class Row:
    """One reply at one strength.

    index: which prompt, from 0; sample: which of its replies; alpha: the strength swept; alphas: that of
    every guide; text: the reply as it continues the prompt; tokens: its length, the end-of-sequence token
    included; kl: sum_t KL(policy || backbone) in nats, and per token; moved: mean share of probability that
    moved per token (total variation); distinct_n and diversity: of the reply's token ids, see `text_metrics`.
    """

    index: int
    prompt: Prompt
    sample: int
    alpha: float
    alphas: dict[str, float]
    text: str
    tokens: int
    kl: float
    kl_per_token: float
    moved: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    diversity: float
    rewards: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return asdict(self)


def sweep(
    model: "AlignedModel",
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    alphas: Sequence[float],
    *,
    guide: str | None = None,
    alpha: float | Mapping[str, float] | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    rewards: Mapping[str, Reward] | None = None,
    start: int = 0,
    on_prompt: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Reply to every prompt at every strength, and measure each reply: rows by prompt, strength, sample.

    alphas: the strengths; of all guides together, or of `guide` while the others keep `alpha` (as
    `resolve_alpha` takes it; None for their defaults). temperature: 0 is greedy; above it, `samples` replies
    are drawn from the whole policy, reproducibly by `seed`. rewards: {name: (prompt, reply) -> number}.
    start: how many prompts were done before; on_prompt: is given each prompt's rows as soon as there are any.
    Errors: no prompts; alphas that are no numbers, or equal; an unknown guide; a prompt longer than the
    context; a reward that fails or gives no number.
    """
    strengths = swept_strengths(model, alphas, guide=guide, alpha=alpha)
    decoding = _decoding(model, tokenizer, max_new_tokens, temperature, samples)
    model.require_same_tokenizer(tokenizer)
    asked = _encoded(model, tokenizer, prompts)
    rows: list[Row] = []
    for index in range(start, len(prompts)):
        if temperature:
            set_seed(seed + index)  # by prompt, so that a resumed sweep draws what an uninterrupted one does
        ids = asked[index].to(model.device)
        per_row = {name: [value for value in own for _ in range(samples)] for name, own in strengths.items()}
        sequences = shared_prompt_replies(model, ids, per_row, **decoding)
        rows += (found := _measure(model, tokenizer, sequences, ids, per_row, rewards or {}, prompts[index], index))
        if on_prompt is not None:
            on_prompt(found)
    return rows
