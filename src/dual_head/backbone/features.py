"""The hidden states of a batch of tokens as guides read them, in the batch's own rows or in others made of them.

Rows may share tokens, as two replies share their prompt; what each token needs is then computed once.

    the backbone's row     [p p p | c c | r r r]                 a prompt once, with both responses
    index [2, 6]           [. 0 1 2 3 4]  [0 1 2 5 6 7]          of its tokens, what each sequence is made of
    rows of guides         [. p p p c c]  [p p p r r r]          keys of p are computed once, and looked up twice

It knows no backbone and no guide.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor


class TokenStrength(NamedTuple):
    """Of one guide at T tokens: alpha [B or 1, T or 1]; new: bool [B or 1, T], whether it predicts a new token."""

    alpha: Tensor
    new: Tensor


@dataclass(frozen=True)
class Features:
    """What the backbone computes of a batch of tokens; guides read this and nothing else.

    hidden: [B, T, d] input of the lm_head; layers: {index: [B, T, d]} the hidden states that guides read
    (0 is the embedding); mask: bool [B, 1, T, K], True where query t may look at key k, or None where causal
    attention over the T tokens without padding is right; positions: [B, T] or None; input_ids: [B, T]
    or None where embeddings were given; padding: [B, past + T] of ones and zeros, or None; keep: the positions whose
    logits are computed; logits: hidden states [..., d] to the backbone's logits [..., V]; strength: of the guide that
    reads this, where it adds to layers (`Guide.steers_layers`).
    """

    hidden: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    positions: Tensor | None = None
    input_ids: Tensor | None = None
    padding: Tensor | None = None
    keep: slice | Tensor = field(default_factory=lambda: slice(None))
    logits: Callable[[Tensor], Tensor] | None = None
    strength: TokenStrength | None = None
    shared: "Shared | None" = None
    together: int = 1  # how many rows following one another may share tokens

    def select(self, rows: "Rows") -> "Features":
        """Other rows of the same tokens, [S, L, d] of [B, T, d]."""
        pick = lambda x: None if x is None else x.flatten(0, 1)[rows.index]  # noqa: E731
        layers = {i: x.flatten(0, 1)[rows.index] for i, x in self.layers.items()}
        shared = Shared(self.hidden, rows.index)
        hidden, ids = shared.rows(), pick(self.input_ids)
        return Features(
            hidden,
            layers,
            input_ids=ids,
            padding=rows.padding,
            keep=rows.keep,
            logits=self.logits,
            shared=shared if rows.together > 1 else None,
            together=rows.together,
        )

    def of_each(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f of every token's hidden state, [B, T, *]; computed once of a token that several rows share."""
        if self.shared is None:
            return f(self.hidden)
        # An embedding: its backward pass adds up rows where an index would be taken apart entry by entry.
        return F.embedding(self.shared.index, f(self.shared.hidden).flatten(0, 1))

    def groups(self, size: int) -> Iterator[Callable[[], "Features"]]:
        """At most `size` rows at a time, and never less than those that share tokens, for a reader of `hidden` alone.

        Each is made when it is called, so that a group that is computed again keeps no rows made of others.
        """
        size = max(self.together, size // self.together * self.together)
        for start in range(0, len(self.hidden), size):
            at = slice(start, start + size)
            pick = lambda x, at=at: x if x is None or len(x) == 1 else x[at]  # noqa: E731
            options = {"mask": pick(self.mask), "padding": pick(self.padding), "keep": self.keep}
            if self.shared is None:
                yield partial(Features, self.hidden[at], **options)
            else:
                yield partial(_shared_rows, self.shared, at, **options)


@dataclass(frozen=True)
class Shared:
    """Rows of tokens [R, T, d], and which of their R T tokens others are made of: index [S, L]."""

    hidden: Tensor
    index: Tensor

    def rows(self) -> Tensor:
        """The rows made of them, [S, L, d]."""
        return self.hidden.flatten(0, 1)[self.index]

    def part(self, at: slice) -> "Shared":
        """Some of the rows made of them, and the tokens in those alone, as one row.

        index [[2, 3], [2, 9]] of many tokens: tokens 2, 3 and 9 as the row, and index [[0, 1], [0, 2]] of it.
        """
        tokens, index = self.index[at].unique(return_inverse=True)
        return Shared(self.hidden.flatten(0, 1)[tokens][None], index)


def _shared_rows(shared: Shared, at: slice, **options: Any) -> Features:
    part = shared.part(at)
    return Features(part.rows(), shared=part, **options)


@dataclass(frozen=True)
class Rows:
    """Rows in which guides read a batch's tokens: index [S, L] into its B T tokens; padding, keep: see `Features`.

    together: how many rows following one another may share tokens.
    """

    index: Tensor
    padding: Tensor | None = None
    keep: slice | Tensor = field(default_factory=lambda: slice(None))
    together: int = 1
