"""Do two tokenizers mean the same by the same id, and which token of one is which of the other?

Compared token by token, by their strings. It knows tokenizers and nothing of models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.model.transfer import UNMAPPED

EXAMPLES = 3


@dataclass(frozen=True)
class Comparison:
    """Two vocabularies side by side: how many ids mean the same token, and which do not."""

    trained: int  # tokens of the guides' tokenizer
    other: int  # tokens of the backbone's
    differing: list[tuple[int, str | None, str | None]]  # id, the guides' token, the backbone's
    shared: int  # tokens of both, under any id

    @property
    def same(self) -> bool:
        """Whether every id means the same token in both."""
        return not self.differing

    @property
    def coverage(self) -> float:
        """Share of the backbone's tokens that a map by token string reaches."""
        return self.shared / max(1, self.other)

    def __str__(self) -> str:
        if self.same:
            return f"the same tokenizer ({self.other} tokens)"
        examples = ", ".join(f"{i}: {there!r} there, {here!r} here" for i, there, here in self.differing[:EXAMPLES])
        return (
            f"{len(self.differing)} of {max(self.trained, self.other)} token ids mean other tokens (for example "
            f"{examples}); {self.shared} of {self.other} tokens ({self.coverage:.1%}) exist in both"
        )


def compare_tokenizers(trained: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Comparison:
    """Compare the tokenizer guides were trained with to another, id by id and token by token."""
    trained_ids, other_ids = trained.get_vocab(), other.get_vocab()
    trained_tokens, other_tokens = ({i: token for token, i in ids.items()} for ids in (trained_ids, other_ids))
    differing = [
        (i, trained_tokens.get(i), other_tokens.get(i))
        for i in sorted(trained_tokens.keys() | other_tokens.keys())
        if trained_tokens.get(i) != other_tokens.get(i)
    ]
    return Comparison(len(trained_ids), len(other_ids), differing, len(trained_ids.keys() & other_ids.keys()))


def vocabulary_map(trained: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, size: int) -> Tensor:
    """For each of a backbone's `size` logits, the id of the same token in the guides' tokenizer, or -1.

    Tokens are matched by their strings; unknown, begin and end also by their role, the end last, since GPT-2
    has one token for all three.
    """
    trained_ids = trained.get_vocab()
    ids = torch.full((size,), UNMAPPED)
    for token, i in other.get_vocab().items():
        if token in trained_ids and i < size:
            ids[i] = trained_ids[token]
    for role in ("unk_token_id", "bos_token_id", "eos_token_id"):
        other_id, trained_id = getattr(other, role), getattr(trained, role)
        if other_id is not None and trained_id is not None and other_id < size:
            ids[other_id] = trained_id
    return ids
