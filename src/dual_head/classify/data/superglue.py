"""The SuperGLUE tasks that are classification, by the columns that the hub's copy has.

MultiRC is asked as the paper's student is; the others in the same manner. It knows rows only.
Sources: Wang et al. 2019; Dual-Head Reasoning Distillation (Xu et al. 2025).
"""

from typing import Any

from dual_head.classify.data.formats import Found, Row, example_format, has, text, texts
from dual_head.data import Dropped

HUB = "aps/super_glue"
YES_NO: dict[str, Any] = {"labels": ("No", "Yes"), "aliases": {"false": "No", "true": "Yes"}}


def _found(row: Row, text_input: str, **more: str) -> Found:
    index = row.get("idx")
    name = str(index) if isinstance(index, (int, str)) else ""
    return Found(text_input, row.get("label"), **{"rationales": texts(row, "rationale"), "id": name, **more})  # type: ignore[arg-type]


def _pair(row: Row) -> bool:
    return has(row, "premise", "hypothesis") and "explanation_1" not in row


@example_format("boolq", matches=lambda row: has(row, "passage", "question"), hub=(HUB, "boolq"), **YES_NO)
def boolq(row: Row) -> Found:
    """BoolQ: a question about a passage, yes or no."""
    question = text(row, "question").rstrip("?")
    return _found(row, f"Passage: {text(row, 'passage')}\nQuestion: {question}?\nIs the answer Yes or No?")


@example_format(
    "cb",
    matches=_pair,
    labels=("entailment", "contradiction", "neutral"),
    hub=(HUB, "cb"),
)
def cb(row: Row) -> Found:
    """CommitmentBank: whether a premise entails a hypothesis, contradicts it, or neither."""
    return _entailment(row)


@example_format("rte", matches=_pair, labels=("entailment", "not_entailment"), hub=(HUB, "rte"))
def rte(row: Row) -> Found:
    """RTE: whether a premise entails a hypothesis."""
    return _entailment(row)


def _entailment(row: Row) -> Found:
    return _found(row, f"Premise: {text(row, 'premise')}\nHypothesis: {text(row, 'hypothesis')}")


@example_format(
    "copa",
    matches=lambda row: has(row, "premise", "choice1", "choice2"),
    labels=("choice1", "choice2"),
    hub=(HUB, "copa"),
)
def copa(row: Row) -> Found:
    """COPA: which of two choices is the cause or the effect of a premise."""
    questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
    kind = text(row, "question")
    if kind not in questions:
        raise Dropped(f"unknown question '{kind[:60]}'")
    choices = f"Choice 1: {text(row, 'choice1')}\nChoice 2: {text(row, 'choice2')}"
    return _found(row, f"Premise: {text(row, 'premise')}\nQuestion: {questions[kind]}\n{choices}")


@example_format(
    "multirc", matches=lambda row: has(row, "paragraph", "question", "answer"), hub=(HUB, "multirc"), **YES_NO
)
def multirc(row: Row) -> Found:
    """MultiRC: whether an answer to a question on a paragraph is correct; the answers to one question are a group."""
    match row.get("idx"):
        case {"paragraph": int(paragraph), "question": int(question), "answer": int(answer)}:
            more = {"group": f"{paragraph}-{question}", "id": f"{paragraph}-{question}-{answer}"}
            more["together"] = f"paragraph {paragraph}"
        case _:
            raise Dropped("no idx with paragraph, question and answer")
    passage = f"Passage: {text(row, 'paragraph')}\nQuestion: {text(row, 'question')}\nAnswer: {text(row, 'answer')}"
    return _found(row, f"{passage}\nIs the answer correct Yes or No?", **more)


@example_format("wic", matches=lambda row: has(row, "word", "sentence1", "sentence2"), hub=(HUB, "wic"), **YES_NO)
def wic(row: Row) -> Found:
    """WiC: whether a word has the same meaning in two sentences."""
    sentences = f"Sentence 1: {text(row, 'sentence1')}\nSentence 2: {text(row, 'sentence2')}"
    return _found(row, f"{sentences}\nIs the word '{text(row, 'word')}' used in the same sense in both, Yes or No?")


@example_format(
    "wsc", matches=lambda row: has(row, "text", "span1_text", "span2_text"), hub=(HUB, "wsc.fixed"), **YES_NO
)
def wsc(row: Row) -> Found:
    """WSC: whether a pronoun in a text means a noun."""
    noun, pronoun, index = text(row, "span1_text"), text(row, "span2_text"), row.get("span2_index")
    words = text(row, "text").split()
    if not isinstance(index, int) or not 0 <= index < len(words):
        raise Dropped("span2_index is no place in the text")
    words[index] = f"*{words[index]}*"  # a text may have the pronoun more than once
    return _found(row, f"Text: {' '.join(words)}\nDoes *{pronoun}* mean '{noun}' here, Yes or No?")
