"""Do two tokenizers mean the same by the same id, and which token of one is which of the other?

Compared token by token, by their strings. It knows tokenizers and nothing of models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.transfer import UNMAPPED

EXAMPLES = 3


@dataclass(frozen=True)
class Comparison:
    """Two vocabularies side by side: how many ids mean the same token, and which do not."""

    trained: int  # tokens of the guides' tokenizer
    other: int  # tokens of the backbone's
    differing: list[tuple[int, str | None, str | None]]  # id, token there, token here
    shared: int  # tokens of the backbone's that the guides' knows, under whatever id

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
    there, here = trained.get_vocab(), other.get_vocab()
    by_id_there, by_id_here = ({i: token for token, i in vocabulary.items()} for vocabulary in (there, here))
    differing = [
        (i, by_id_there.get(i), by_id_here.get(i))
        for i in sorted(by_id_there.keys() | by_id_here.keys())
        if by_id_there.get(i) != by_id_here.get(i)
    ]
    return Comparison(len(there), len(here), differing, len(there.keys() & here.keys()))


def vocabulary_map(trained: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, size: int) -> Tensor:
    """For each of a backbone's `size` logits, the id of the same token in the guides' tokenizer, or -1.

    Tokens are matched by their strings; unknown, begin and end also by their role, the end last, since GPT-2
    has one token for all three.
    """
    there, here = trained.get_vocab(), other.get_vocab()
    ids = torch.full((size,), UNMAPPED)
    for token, i in here.items():
        if token in there and i < size:
            ids[i] = there[token]
    for role in ("unk_token_id", "bos_token_id", "eos_token_id"):
        own, theirs = getattr(other, role), getattr(trained, role)
        if own is not None and theirs is not None and own < size:
            ids[own] = theirs
    return ids
