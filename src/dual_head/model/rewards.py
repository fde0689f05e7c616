"""A guide as a reward model: what it says of finished replies, token by token, from one pass.

    r(x, y) = sum_t log pi(y_t | x, y_<t) - log pi_base(y_t | x, y_<t)         nats; 0 at alpha = 0

A policy that was trained on preferences is a reward model: beta r is the reward that DPO fits, up to a number of the
prompt alone, so replies to one prompt can be compared by r. Source: Rafailov et al. 2023, section 4.

It writes prompts and replies as training does, and knows guides only through the policy's distributions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dual_head.data import Dropped, Prompt
from dual_head.data.conversation import write
from dual_head.errors import DualHeadError
from dual_head.model.alpha import Alpha
from dual_head.model.generate import NOT_A_NUMBER, conversation_of
from dual_head.model.score import token_scalars
from dual_head.model.types import Aligned

NEEDS = ("policy_logps", "base_logps", "reward_logps", "kl")
Row = tuple[list[int], list[int]]  # tokens of a prompt and of a reply


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a reply, in nats.

    reward: log pi - log pi_base; reward_logp: log-probability under the guide's own distribution, without strength and
    gate, None unless one guide acts; kl: KL(pi || pi_base) where it stands; gates: {guide: gate in (0, 1)}.
    """

    token_id: int
    base_logp: float
    policy_logp: float
    reward_logp: float | None
    kl: float
    gates: dict[str, float]

    @property
    def reward(self) -> float:
        """How much likelier the guides make the token."""
        return self.policy_logp - self.base_logp


@dataclass(frozen=True, slots=True)
class ReplyScore:
    """One reply: its tokens, the end of its turn among them unless it is a `Cut`."""

    tokens: list[TokenScore]

    @property
    def reward(self) -> float:
        """sum_t log pi - log pi_base, nats."""
        return sum(token.reward for token in self.tokens)

    @property
    def kl(self) -> float:
        """sum_t KL(pi || pi_base) along the reply, nats."""
        return sum(token.kl for token in self.tokens)


def score_replies(
    model: Aligned,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    alpha: Alpha = None,
    chat_template: bool = True,
    batch_size: int = 16,
) -> list[ReplyScore]:
    """Score one reply to each prompt, see `AlignedModel.score`."""
    if batch_size < 1:
        raise DualHeadError(f"batch_size must be at least 1, not {batch_size}.")
    rows = encode_rows(prompts, replies, tokenizer, chat_template=chat_template)
    return score_rows(model, rows, alpha=alpha, batch_size=batch_size)


def encode_rows(
    prompts: Sequence[Prompt], replies: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat_template: bool = True
) -> list[Row]:
    """Token ids of each prompt and its reply, as training writes them. Errors: nothing is left of a reply."""
    # The characters or messages of one would be taken for several.
    if isinstance(prompts, str) or isinstance(replies, str) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise DualHeadError("Prompts and replies are two lists. Give [prompt] and [reply].")
    if len(prompts) != len(replies):
        raise DualHeadError(f"There are {len(prompts)} prompts and {len(replies)} replies. Give one reply to each.")
    exchanges = [
        (conversation_of(prompt, tokenizer, chat_template=chat_template), (reply,))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    rows = []
    for i, conversation in enumerate(write(exchanges, tokenizer), 1):
        if isinstance(conversation, Dropped):
            raise DualHeadError(
                f"Reply {i} cannot be scored: {conversation}. A text prompt is continued letter by letter: begin the "
                "reply with a space, or give the prompt as messages."
            )
        rows.append((conversation.prompt, conversation.replies[0]))
    return rows


def score_rows(model: Aligned, rows: Sequence[Row], *, alpha: Alpha = None, batch_size: int = 16) -> list[ReplyScore]:
    """Score rows of token ids, those of like lengths together.

    Errors: no tokens, more than the context holds, logits of NaN or infinity.
    """
    context = model.guides.context_length(model.guides)
    for i, (prompt, reply) in enumerate(rows, 1):
        if not prompt or not reply:
            raise DualHeadError(f"Reply {i} cannot be scored: it or its prompt has no tokens. Leave it out.")
        if context and len(prompt) + len(reply) > context:
            raise DualHeadError(
                f"Reply {i} and its prompt have {len(prompt) + len(reply)} tokens, and the backbone reads {context}. "
                "Shorten the prompt."
            )
    scores: dict[int, ReplyScore] = {}
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))  # the longest shows what fits
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        scores |= zip(indices, _scored(model, [rows[i] for i in indices], alpha), strict=True)
    return [scores[i] for i in range(len(rows))]


def _scored(model: Aligned, rows: Sequence[Row], alpha: Alpha) -> list[ReplyScore]:
    """Score one batch: prompts padded on the left, replies on the right.

    [ . p p | r r e ]
    [ p p p | r e . ]
    """
    device = model.device
    width, longest = (max(len(row[side]) for row in rows) for side in (0, 1))
    sequences = torch.zeros(len(rows), width + longest, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for r, (prompt, reply) in enumerate(rows):
        sequences[r, width - len(prompt) : width + len(reply)] = torch.tensor([*prompt, *reply])
        mask[r, width - len(prompt) :] = 1
    lengths = torch.tensor([len(reply) for _, reply in rows])
    at = token_scalars(model, sequences.to(device), mask.to(device), alpha=alpha, lengths=lengths, needs=NEEDS)
    if not torch.stack([*at.scalars.values()]).isfinite().all():
        raise DualHeadError(NOT_A_NUMBER)
    scalars = {name: values.tolist() for name, values in at.scalars.items()}
    gates = {name: values.tolist() for name, values in at.gates.items()}
    tokens: list[list[TokenScore]] = [[] for _ in rows]
    for i, (row, label) in enumerate(zip(at.row.tolist(), at.labels.tolist(), strict=True)):
        tokens[row].append(
            TokenScore(
                token_id=label,
                base_logp=scalars["base_logps"][i],
                policy_logp=scalars["policy_logps"][i],
                reward_logp=scalars["reward_logps"][i] if "reward_logps" in scalars else None,
                kl=max(0.0, scalars["kl"][i]),  # rounding can pass below 0
                gates={name: values[i] for name, values in gates.items()},
            )
        )
    return [ReplyScore(of_row) for of_row in tokens]
