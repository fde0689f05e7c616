"""Examples to token ids: the input alone, then what the reasoning head learns to write after it.

An input too long is dropped and counted, or cut where that was asked for; a rationale too long is cut and counted.
It knows tokenizers, and no file, model or tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from dual_head.classify.config import LmScope, scope_of
from dual_head.classify.types import Example, TextForm
from dual_head.data import RowReport
from dual_head.data.conversation import first_ids
from dual_head.errors import DualHeadError

BATCH = 512  # examples per tokenizer call
Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class ClassifyTokenizeOptions:
    """How long inputs and rationales may be, in tokens.

    max_input_length; max_rationale_length: of everything after the input; truncate_inputs: "no" drops an input that
    is too long, "start" and "end" cut it there.
    """

    max_input_length: int = 512
    max_rationale_length: int = 1024
    truncate_inputs: Literal["no", "start", "end"] = "no"

    def within(self, positions: int | None) -> "ClassifyTokenizeOptions":
        """Check against the positions a model has. Errors: both together are more."""
        total = self.max_input_length + self.max_rationale_length
        if self.max_input_length < 1 or self.max_rationale_length < 0:
            raise DualHeadError("max_input_length is at least 1 and max_rationale_length at least 0.")
        if positions is not None and total > positions:
            raise DualHeadError(
                f"Inputs of {self.max_input_length} tokens and rationales of {self.max_rationale_length} make {total}, "
                f"and the backbone has {positions} positions. Lower --max_input_length or --max_rationale_length."
            )
        return self


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One example as ids: its input, what follows, and which of what follows (or of the input) is to be learnt.

    learnt: one flag for each id of input + rest, true where the reasoning head is trained to write it.
    """

    input_ids: Ids
    rest_ids: Ids
    learnt: list[bool]
    label: int | tuple[float, ...] | None
    index: int


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    options: ClassifyTokenizeOptions,
    *,
    form: TextForm,
    names: tuple[str, ...],
    scope: LmScope = "everything",
    rationales: bool = True,
) -> tuple[list[Tokenized], RowReport]:
    """Tokenise examples, those that can be classified; count and locate the others.

    Special tokens are those of the tokenizer and of the form's prefixes; one that a text says is text. names: of the
    labels; scope: what is learnt of a row, see `DualHeadReasoningConfig`; rationales: false leaves out
    all that follows the input, and teaches the reasoning head nothing. Rows without a rationale teach the input at
    most. Errors: nothing is left.
    """
    drops, rows, scope_name = RowReport(rows=len(examples)), [], scope_of(scope)
    ends = {kind: _end_of_special(prefix, tokenizer) for kind, prefix in form.prefixes().items()}
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        for offset, (example, ids) in enumerate(zip(batch, input_ids_of(batch, tokenizer), strict=True)):
            index = start + offset
            where = example.id or f"row {index + 1}"
            if len(ids) > options.max_input_length:
                if options.truncate_inputs == "no":
                    drops.drop(f"input longer than {options.max_input_length} tokens", where)
                    continue
                drops.notes[f"inputs cut to {options.max_input_length} tokens"] += 1
                ids = cut_ids(ids, options, first=len(first_ids(tokenizer)))
            parts = form.parts(example, names)
            rest, kinds = _rest(parts, tokenizer, options, ends, drops) if rationales else ([], [])
            all_text = scope_name == "everything"
            taught = [all_text or kind == "rationale" or scope_name == "continuation" for kind in kinds]
            learnt = [all_text and rationales] * len(ids) + taught
            learnt[0] = False  # nothing predicts the first token
            rows.append(Tokenized(ids, rest, learnt, example.label, index))
    drops.kept = len(rows)
    if not rows:
        raise DualHeadError(f"No example is left. Raise max_input_length, or look at the data:\n{drops.table()}")
    return rows, drops


def input_ids_of(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Ids]:
    """Tokenise inputs alone, so that what is pooled cannot depend on what follows."""
    first = first_ids(tokenizer)
    for ids in _plain_ids([example.input for example in examples], tokenizer):
        # An input that the tokenizer knows nothing of still has a token to pool at.
        yield [*first, *ids] or [_any_id(tokenizer)]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that a tokenizer reads as special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _plain_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Tokenise texts in which nothing begins or ends a document: "</s>" is four characters."""
    encoded: Any = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    both: Any = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    marks, unknown = set(both), cast(int | None, tokenizer.unk_token_id)
    if unknown is None or unknown in marks:
        return encoded  # such tokenizers spell what they do not know
    # A vocabulary of whole words has the special ones among them.
    return [ids if marks.isdisjoint(ids) else [unknown if one in marks else one for one in ids] for ids in encoded]


def _end_of_special(prefix: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the last special token of a prefix ends, 0 where the tokenizer has none of them."""
    return max((prefix.rfind(token) + len(token) for token in special_tokens(tokenizer) if token in prefix), default=0)


def _rest(
    parts: Sequence[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    options: ClassifyTokenizeOptions,
    ends: Mapping[str, int],
    drops: RowReport,
) -> tuple[Ids, list[str]]:
    """Ids after the input, and of which part each is; the end-of-sequence token belongs to the last part.

    ends: up to where special tokens of a kind of part are meant as such.
    """
    ids: Ids = []
    kinds: list[str] = []
    for kind, text in parts:
        end = ends[kind]
        marked: Any = tokenizer(text[:end], add_special_tokens=False)["input_ids"] if end else []
        tail = [*marked, *_plain_ids([text[end:]], tokenizer)[0]]
        ids += tail
        kinds += [kind] * len(tail)
    if not ids:
        drops.notes["rows without a rationale"] += 1
        return [], []
    if tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))  # type: ignore[arg-type]
        kinds.append(kinds[-1])
    if len(ids) > options.max_rationale_length:
        drops.notes[f"rationales cut to {options.max_rationale_length} tokens"] += 1
        ids, kinds = ids[: options.max_rationale_length], kinds[: options.max_rationale_length]
    return ids, kinds


def cut_ids(ids: Ids, options: ClassifyTokenizeOptions, *, first: int) -> Ids:
    """Cut an input to its length; at the start, its `first` special tokens stay."""
    size = options.max_input_length
    if options.truncate_inputs == "end":
        return ids[:size]
    return [*ids[:first], *ids[len(ids) - (size - first) :]] if size > first else ids[:size]


def _any_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        if isinstance(token, int):
            return token
    return 0
