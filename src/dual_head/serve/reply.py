"""A reply as it grows: from tokens to text that is certain, up to a stop string."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from dual_head.serve.types import FinishReason, Piece, TokenRecord

UNFINISHED = "�"  # what part of a character decodes to


class Reply:
    """Takes a request's tokens as they come and gives the text that nothing later can change.

    text   [ what was handed out | held back ]        held back: what could be the beginning of a stop string
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), end_tokens: Collection[int] = ()):
        self._tokenizer, self._stop, self._end_tokens = tokenizer, tuple(stop), frozenset(end_tokens)
        self._ids: list[int] = []
        # Tokens are decoded behind some that came before, since a tokenizer writes the first of a text differently.
        self._before = self._read = 0
        self._held = ""

    def add(self, tokens: Sequence[TokenRecord], *, finished: bool) -> Piece:
        """The text that these tokens made certain; finished: no more will come."""
        reason: FinishReason | None = None
        for token in tokens:
            if token.id in self._end_tokens:
                reason, finished = "stop", True
            else:
                self._ids.append(token.id)
        text = self._held + self._decoded(finished)
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            return Piece(text[:cut], tuple(tokens), "stop")
        if finished:
            return Piece(text, tuple(tokens), reason or "length")
        hold = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - hold :]
        return Piece(text[: len(text) - hold], tuple(tokens))

    def _decoded(self, finished: bool) -> str:
        decode = self._tokenizer.decode
        before: str = decode(self._ids[self._before : self._read], skip_special_tokens=True)  # pyright: ignore
        whole: str = decode(self._ids[self._before :], skip_special_tokens=True)  # pyright: ignore
        if not finished and (len(whole) <= len(before) or whole.endswith(UNFINISHED)):
            return ""
        self._before, self._read = self._read, len(self._ids)
        return whole[len(before) :]
