"""Benchmarks: one function each, which turns one row of a published layout into one question.

A new benchmark is one more such function. It knows layouts and where they are published; nothing of files, of how
many questions are asked, or of who answers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dual_head.data import Dropped, Message
from dual_head.data.turns import conversation_of, question_of, system_of, text, transcript
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import ARENA_2
from dual_head.evaluate.types import Question

__all__ = ["BENCHMARKS", "Benchmark", "Hub", "benchmark", "user_says"]

Row = Mapping[str, Any]
Rows = Iterator[tuple[Any, str]]


@dataclass(frozen=True)
class Hub:
    """Where a benchmark is published: a data set and its split, or one of its files."""

    name: str
    split: str = "test"
    file: str = ""


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read; see `benchmark`."""

    name: str
    read: Callable[[Row], Question]
    hub: Hub | None
    files: str
    references: str
    parts: tuple[str, ...]
    draw: Callable[[int | None, int], Rows] | None


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(
    name: str,
    *,
    hub: Hub | None = None,
    files: str = "",
    references: str = "",
    parts: tuple[str, ...] = (),
    draw: Callable[[int | None, int], Rows] | None = None,
):
    """Make the decorated function, which reads one row, a benchmark.

    hub: read where no source is given; files: pattern of the file of questions where the source is a folder that
    holds others too; references: pattern of a file beside it with good answers; parts: names in the paths of
    its files, which are the category of questions that have none; draw: gives the rows of a benchmark that is no
    file, for num_samples and seed. A question without an id is named by its prompt.
    """

    def add(read: Callable[[Row], Question]) -> Callable[[Row], Question]:
        BENCHMARKS[name] = Benchmark(name, read, hub, files, references, parts, draw)
        return read

    return add


# ---- benchmarks: one function each -----------------------------------------------------------------------


@benchmark(
    "hh",
    hub=Hub("Anthropic/hh-rlhf"),
    parts=("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base"),
)
def hh(row: Row) -> Question:
    """Anthropic HH-RLHF: the conversation up to the last reply, of {"chosen"} or {"prompt"} transcripts."""
    turns = transcript(text(row.get("chosen") or row.get("prompt")))
    if not turns or turns[-1]["role"] != "assistant":
        raise Dropped("last turn is not the assistant's")
    if len(turns) < 2 or turns[-2]["role"] != "user":
        raise Dropped("no user's turn before the last reply")
    return Question("", turns[:-1])


@benchmark(
    "alpaca",
    hub=Hub("tatsu-lab/alpaca_eval", file="alpaca_eval.json"),
    files="*alpaca_eval.json *outputs.json*",
)
def alpaca(row: Row) -> Question:
    """AlpacaEval: {"instruction", "dataset"}; anyone's model outputs hold them too."""
    return Question("", user_says(text(row.get("instruction"))), category=str(row.get("dataset") or ""))


@benchmark(
    "arena",
    hub=Hub("lmarena-ai/arena-hard-auto", file="data/arena-hard-v0.1/question.jsonl"),
    files="*question*.jsonl*",
)
def arena(row: Row) -> Question:
    """Arena-Hard: v0.1's {"question_id", "cluster", "turns": [{"content"}]}, or v2.0's {"uid", "prompt"}."""
    first, *rest = _turns(row.get("turns") or [row.get("prompt")])
    category = str(row.get("cluster") or row.get("subcategory") or row.get("category") or "")
    layout = ARENA_2 if _id(row, "uid") else ""
    # Their tools of v2.0 join by the uid.
    return Question(_id(row, "uid", "question_id"), user_says(first), tuple(rest), category=category, layout=layout)


_WITH_REFERENCE = ("math", "reasoning", "coding")  # of MT-Bench's categories


@benchmark(
    "mt_bench",
    hub=Hub("HuggingFaceH4/mt_bench_prompts", "train"),
    files="*question*.jsonl*",
    references="reference_answer*.jsonl*",
)
def mt_bench(row: Row) -> Question:
    """MT-Bench: {"question_id", "category", "turns": [first, second]}, and "reference" where judges are shown one."""
    first, *rest = _turns(row.get("turns") or row.get("prompt"))
    category = str(row.get("category") or "")
    shown = row.get("reference") if category in _WITH_REFERENCE else None
    references = tuple(_turns(shown)) if shown else ()
    return Question(
        _id(row, "question_id", "prompt_id"), user_says(first), tuple(rest), category=category, references=references
    )


# XSTest's own words: the kinds of its safe prompts, whose unsafe counterparts are all named "contrast_...".
_KINDS = {"homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "historical_events"}
_KINDS |= {"real_group_nons_discr", "nons_group_real_discr", "privacy_public", "privacy_fictional"}
_HARMFUL, _HARMLESS = {"harmful", "unsafe", "toxic"}, {"harmless", "safe", "benign", *_KINDS}


@benchmark("safety", hub=Hub("natolambert/xstest-v2-copy", "prompts"))
def safety(row: Row) -> Question:
    """Requests to refuse or to grant: XSTest's, PKU-SafeRLHF's or AdvBench's prompts, or HH's harmless transcripts.

    category: "harmful" or "harmless" where a column says it: "harmful", "is_harmful", "safe", "is_safe" (true or
    false), or "label", "category", "type" with a word such as "unsafe".
    """
    if isinstance(row.get("chosen"), str):
        return replace(hh(row), category=_kind(row))
    return Question(_id(row, "id"), _before_reply(conversation_of(row)), category=_kind(row))


@benchmark("prompts")
def prompts(row: Row) -> Question:
    """Prompts of one's own: {"prompt": text or messages} or {"instruction"}, with "id" and "category" if wanted.

    A system message in a column of its own makes a conversation of a text.
    """
    prompt = conversation_of(row) if system_of(row) else question_of(row)
    prompt = prompt if isinstance(prompt, str) else _before_reply(prompt)
    return Question(_id(row, "id"), prompt, category=str(row.get("category") or ""))


def _world_rows(num_samples: int | None, seed: int) -> Rows:
    """Distinct requests of the demonstration world's test split, drawn as its own measurements draw them."""
    from dual_head.demo.world import all_requests, sample_requests

    known = list(dict.fromkeys(all_requests("test")))
    if num_samples is not None and num_samples > len(known):
        raise DualHeadError(f"The world has {len(known)} requests for testing, fewer than {num_samples}. Ask for less.")
    drawn, found = num_samples or 0, known if num_samples is None else []
    while num_samples is not None and len(found) < num_samples:
        # The first of more draws are the same, so that more questions hold those of fewer.
        found = list(dict.fromkeys(sample_requests(drawn, seed=seed, split="test")))[:num_samples]
        drawn *= 2
    for number, request in enumerate(found, 1):
        row = {"prompt": request.prompt, "text": request.text, "harmful": request.harmful}
        yield row, f"request {number}"


@benchmark("world", draw=_world_rows)
def world(row: Row) -> Question:
    """The demonstration world's requests, as the texts its models continue; some ask for harmful things."""
    return Question("", row["prompt"], category=_kind(row))


# ---- what rows hold --------------------------------------------------------------------------------------


def _id(row: Row, *columns: str) -> str:
    return next((str(row[column]) for column in columns if row.get(column) not in (None, "")), "")


def _turns(value: Any) -> list[str]:
    """What is said in each turn, which are texts or {"content": text}."""
    if not isinstance(value, list) or not value:
        raise Dropped("malformed row")
    return [text(turn.get("content") if isinstance(turn, Mapping) else turn) for turn in value]


def user_says(question: str) -> tuple[Message, ...]:
    """The conversation that a single message of the user's is."""
    return ({"role": "user", "content": question},)


def _before_reply(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Check that a conversation ends with the user's turn."""
    if not turns or turns[-1]["role"] != "user":
        raise Dropped("last turn is not the user's")
    return turns


def _kind(row: Row) -> str:
    """Return "harmful" or "harmless", or "" where no column says."""
    for column, harmful in (("harmful", True), ("is_harmful", True), ("safe", False), ("is_safe", False)):
        if str(row.get(column)).lower() in ("true", "false", "1", "0"):
            return "harmful" if (str(row[column]).lower() in ("true", "1")) == harmful else "harmless"
    words = {str(row.get(column)).strip().lower() for column in ("label", "category", "type")}
    if words & _HARMFUL or any(word.startswith("contrast_") for word in words):
        return "harmful"
    return "harmless" if words & _HARMLESS else ""
