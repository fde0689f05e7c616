"""CommonsenseQA with a teacher's chains of thought, whose questions, choices and answers come in several layouts.

Sources: Talmor et al. 2019; the chains of thought of Hsieh et al. 2023.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dual_head.classify.data.files import CHAIN, cqa_rows
from dual_head.classify.data.rows import Format, RawExample, Row, fill, text
from dual_head.data import Dropped

LETTERS = "abcde"


class CommonsenseQA(Format):
    """A question and up to five choices, which the input lists by letter.

    The teacher's answer is kept as it is, right or wrong; where it cannot be read, the human explanation and the
    right answer stand in.
    """

    def read(self, row: Row, template: str | None = None) -> RawExample:
        """See `Format`."""
        question, choices, label = _question(row)
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        notes = ["a question that lists a choice twice"] if len(set(choices)) < len(choices) else []
        chain = row.get(CHAIN)
        reply = read_chain(chain, len(choices)) if isinstance(chain, str) else None
        if reply is None:
            rationale = text(row, "abstractive_explanation", "")
            answer = f"({label}) {choices[LETTERS.index(label)]}" if label else ""
            notes += ["no teacher's answer to be read; the human explanation instead"] if chain is not None else []
        else:
            rationale, letter = reply
            choice = choices[LETTERS.index(letter)]
            letter = LETTERS[choices.index(choice)]  # of a choice listed twice, the one that the label is read as
            answer = f"({letter}) {choice}"
            notes += ["the teacher's answer is another than the label's"] if label and letter != label else []
        example = RawExample(
            f"{question}\nAnswer choices:\n{listed}",
            label,
            rationales=(rationale,) if rationale else (),
            answer=answer if rationale else "",
            id=text(row, "id", ""),
            notes=tuple(notes),
        )
        return replace(example, input=fill(template, row)) if template else example


def read_chain(chain: str, choices: int) -> tuple[str, str] | None:
    """A chain of thought as (rationale, letter of the answer), without what the teacher made up after it.

    Of "either (a) or (e)" it is the first.
    """
    reply = chain.split("\n\nQ:")[0]
    answer = rf"So the answer is [^()]*\(([{LETTERS[:choices]}])\)"
    match = re.search(rf"\A(.*?)\s*{answer}", reply, re.DOTALL | re.IGNORECASE)
    return (match[1].strip(), match[2].lower()) if match else None


def _choices(row: Row) -> Any:
    nested = row.get("question")
    return nested.get("choices") if isinstance(nested, dict) else row.get("choices")


def _question(row: Row) -> tuple[str, Sequence[str], str | None]:
    """Question, choices and the right letter, from any of the layouts that there are."""
    nested = row.get("question")
    choices = _choices(row)
    question = text(nested, "stem") if isinstance(nested, dict) else text(row, "question")
    match choices:
        case {"label": list(letters), "text": list(listed)} if len(letters) == len(listed):
            pass
        case [{"label": _, "text": _}, *_]:
            letters, listed = [one.get("label") for one in choices], [one.get("text") for one in choices]
        case [str(), *_]:
            letters, listed = list(LETTERS[: len(choices)]), choices
        case _:
            raise Dropped("choices that are not a list")
    if len(listed) > len(LETTERS):
        raise Dropped(f"more than {len(LETTERS)} choices")
    options = [text({"choices": one}, "choices") for one in listed]
    key = row.get("answerKey") if "answerKey" in row else row.get("answer")
    if not key:
        return question, options, None
    names = {str(letter).strip().casefold(): place for place, letter in reversed(list(enumerate(letters)))}
    texts = {one.casefold(): place for place, one in reversed(list(enumerate(options)))}
    place = (names if "answerKey" in row else texts).get(str(key).strip().casefold())
    if place is None:
        raise Dropped("the answer is not among the choices")
    return question, options, LETTERS[place]


CQA = CommonsenseQA(
    "cqa",
    labels=tuple(LETTERS),
    matches=lambda row: isinstance(_choices(row), (dict, list)),
    layout=cqa_rows,
    hub=("tau/commonsense_qa", None),
)
