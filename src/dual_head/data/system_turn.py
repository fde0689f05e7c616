"""Where the system turn of a conversation begins and ends, in token ids, and how another system prompt would begin.

    <|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\nHi
    [ opening        ]         [ closing              ]            of any system turn
    [ header                                          ]            what comes before the user's text

Found by writing a few conversations and comparing them, so for any chat template. It knows no model.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from dual_head.data.conversation import Ids, first_ids, token_ids, write
from dual_head.data.types import Dropped, Message
from dual_head.errors import DualHeadError

# What users and system prompts may begin and end with, as tokenizers merge such characters with their neighbours.
_USERS = ("a", "Z", "1", " a", "\na", "\n\na", "- a")
_SYSTEMS = ("a", "Z.", "1!", "\na\n", '"b"')


def header(system: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids of all that comes before the user's text, under a system prompt; "" is a conversation without one.

    Without a chat template it is the text itself, behind the first special tokens. Errors: a template that takes no
    system prompt.
    """
    if not tokenizer.chat_template:
        return first_ids(tokenizer) + token_ids([system], tokenizer)[0]
    system_turn: list[Message] = [{"role": "system", "content": system}] if system else []
    exchanges = [([*system_turn, {"role": "user", "content": text}], ()) for text in _USERS]
    conversations = write(exchanges, tokenizer)
    for conversation in conversations:
        if isinstance(conversation, Dropped):
            raise DualHeadError(
                f"The chat template takes no system prompt ({conversation}). Give the prompt as token ids, which go "
                "before the request as they are."
            )
    return _shared([x.prompt for x in conversations if not isinstance(x, Dropped)])


def layout(tokenizer: PreTrainedTokenizerBase) -> dict[str, Ids]:
    """What a request may begin with: {"bare": without a system turn, "opening" and "closing" of one, "first": a text}.

    opening and closing are empty where no system turn can be told from the user's text.
    """
    bare, first = header("", tokenizer), first_ids(tokenizer)
    parts = {"bare": bare, "opening": Ids(), "closing": Ids(), "first": first}
    if not tokenizer.chat_template:
        return parts
    headers = [header(text, tokenizer) for text in _SYSTEMS]
    opening, closing = _shared(headers), _shared([ids[::-1] for ids in headers])[::-1]
    # A template that puts the system prompt into the user's turn opens both alike.
    alike = bare[: len(opening)] == opening
    if not (opening and closing) or (alike and bare[len(opening) :][-len(closing) :] != closing):
        return parts
    return parts | {"opening": opening, "closing": closing}


def _shared(rows: Sequence[Ids]) -> Ids:
    """What all rows begin with."""
    columns: Iterable[tuple[int, ...]] = zip(*rows, strict=False)
    return [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
