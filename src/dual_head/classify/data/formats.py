"""The formats that rows come in, a table: columns of one's own, data sets with rationales, and SuperGLUE's tasks.

To add one is to add an entry. MultiRC is asked as the paper's student is; the other tasks in the same manner.
Sources: e-SNLI, Camburu et al. 2018; CREAK, Onoe et al. 2021; SuperGLUE, Wang et al. 2019; Dual-Head Reasoning
Distillation (Xu et al. 2025).
"""

from typing import Any

from dual_head.classify.data.cqa import CQA
from dual_head.classify.data.files import esnli_rows
from dual_head.classify.data.rows import TEXTS, Format, Row, has, text
from dual_head.data import Dropped

HUB = "aps/super_glue"
YES_NO: dict[str, Any] = {"labels": ("No", "Yes"), "aliases": {"false": "No", "true": "Yes"}}
NLI = "Premise: {premise}\nHypothesis: {hypothesis}"
PLAIN = {"text", "label", "label_text", "rationale", "id", "idx"}
COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def _copa(row: Row) -> Row:
    """Write the kind of question out."""
    kind = text(row, "question")
    if kind not in COPA_QUESTIONS:
        raise Dropped(f"unknown question '{kind[:60]}'")
    return {**row, "question": COPA_QUESTIONS[kind]}


def _multirc(row: Row) -> Row:
    """Take the index apart: the answers to one question are a group, and a paragraph's questions stay together."""
    match row.get("idx"):
        case {"paragraph": int(paragraph), "question": int(question), "answer": int(answer)}:
            group = f"{paragraph}-{question}"
            return {**row, "group": group, "idx": f"{group}-{answer}", "together": f"paragraph {paragraph}"}
    raise Dropped("no idx with paragraph, question and answer")


def _wsc(row: Row) -> Row:
    """Mark the pronoun, which a text may have more than once."""
    words, index = text(row, "text").split(), row.get("span2_index")
    if not isinstance(index, int) or not 0 <= index < len(words):
        raise Dropped("span2_index is not a place in the text")
    words[index] = f"*{words[index]}*"
    return {**row, "text": " ".join(words)}


def _task(name: str, template: str, *, configuration: str | None = None, **options: Any) -> Format:
    """A task of SuperGLUE, as the hub's copy has it."""
    return Format(name, template, hub=(HUB, configuration or name), **{"texts": {"id": "idx"}, **options})


def _nli(row: Row) -> bool:
    return has(row, "premise", "hypothesis") and "explanation_1" not in row


TABLE = (
    Format("triplets", "{input_text}", texts={name: name for name in TEXTS}, matches=lambda row: "input_text" in row),
    Format(
        "text",
        "{text}",
        texts={"id": "id"},
        matches=lambda row: has(row, "text") and "label" in row and row.keys() <= PLAIN,  # no other input is left out
    ),
    Format("columns", inputs=("input",), matches=lambda row: False),  # noqa: ARG005 - chosen, never guessed
    Format(
        "esnli",
        NLI,
        labels=("entailment", "neutral", "contradiction"),
        rationales=("explanation_1", "explanation_2", "explanation_3"),
        texts={"id": "pairID", "together": "premise"},  # most premises have three hypotheses
        matches=lambda row: has(row, "premise", "hypothesis", "explanation_1"),
        layout=esnli_rows,
    ),
    Format(
        "creak",
        "{sentence}",
        labels=("false", "true"),
        rationales=("explanation",),
        texts={"id": "ex_id"},
        matches=lambda row: has(row, "sentence", "explanation"),
    ),
    CQA,
    _task(
        "boolq",
        "Passage: {passage}\nQuestion: {question}?\nIs the answer Yes or No?",
        prepare=lambda row: {**row, "question": text(row, "question").rstrip("?")},
        **YES_NO,
    ),
    _task("cb", NLI, labels=("entailment", "contradiction", "neutral"), matches=_nli),
    _task("rte", NLI, labels=("entailment", "not_entailment"), matches=_nli),
    _task(
        "copa",
        "Premise: {premise}\nQuestion: {question}\nChoice 1: {choice1}\nChoice 2: {choice2}",
        labels=("choice1", "choice2"),
        prepare=_copa,
    ),
    _task(
        "multirc",
        "Passage: {paragraph}\nQuestion: {question}\nAnswer: {answer}\nIs the answer correct Yes or No?",
        texts={"id": "idx", "group": "group", "together": "together"},
        prepare=_multirc,
        **YES_NO,
    ),
    _task(
        "wic",
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Is the word '{word}' used in the same sense in both, Yes or No?",
        **YES_NO,
    ),
    _task(
        "wsc",
        "Text: {text}\nDoes *{span2_text}* mean '{span1_text}' here, Yes or No?",
        configuration="wsc.fixed",
        prepare=_wsc,
        **YES_NO,
    ),
)
FORMATS = {row_format.name: row_format for row_format in TABLE}
