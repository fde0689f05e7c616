"""What a judge is told: templates in JSON files, in families, and the one that a question needs.

A file is {"name", "family", "kind": "pairwise" or "single", "turns", "references", "verdict", "system", "template",
"source"}.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dual_head.backbone.fingerprint import digest
from dual_head.data import Message
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.judges.base import require_whole
from dual_head.evaluate.judges.prompts.reading import PATTERNS, Pattern, Unreadable
from dual_head.evaluate.types import Question, Replies
from dual_head.files.reading import json_value, reading
from dual_head.model.generate import Prompt
from dual_head.options import build

__all__ = ["Family", "Pattern", "Template", "Unreadable", "load_family"]

SIDES = {"pairwise": ("answer_a", "answer_b"), "single": ("answer",)}
REFERENCED = ("math", "reasoning", "coding")  # categories in which MT-Bench shows the judge a reference
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Template:
    """One prompt for a judge.

    kind: "pairwise" or "single"; turns: of the questions it is for; references: whether it shows them; verdict: a
    name of `reading.PATTERNS`; template: has {question} and {answer_a}, {answer_b} (or {answer}), and {ref_answer_1}
    with references; with two turns {question_1}, {answer_a_1} and so on.
    """

    name: str
    kind: str
    verdict: str
    template: str
    family: str = ""
    turns: int = 1
    references: bool = False
    system: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        def refuse(why: str) -> None:
            raise DualHeadError(f"The judge's template '{self.name}' {why}")

        if self.kind not in SIDES:
            refuse(f"is of kind '{self.kind}'. It is pairwise or single.")
        if self.verdict not in PATTERNS or PATTERNS[self.verdict].kind != self.kind:
            known = [name for name, pattern in PATTERNS.items() if pattern.kind == self.kind]
            refuse(f"asks for a verdict '{self.verdict}'. One of kind {self.kind} asks for {' or '.join(known)}.")
        if self.turns < 1:
            refuse("has no turns. Give at least 1.")
        blank = ("",) * self.turns
        references = blank if self.references else ()
        texts = _places([*blank], references, dict.fromkeys(SIDES[self.kind], blank))
        places = set(_PLACE.findall(self.template))
        if unknown := places - texts.keys():
            refuse(f"has a place {{{min(unknown)}}}.{did_you_mean(min(unknown), texts)}")
        for side in (*SIDES[self.kind], *(["ref_answer"] if self.references else [])):
            if not any(place.startswith(side) for place in places):
                refuse(f"does not show {{{side}}}. Put it where the judge is to read it.")

    @property
    def pattern(self) -> Pattern:
        """How its verdict is written."""
        return PATTERNS[self.verdict]

    def messages(self, question: Question, *answers: Replies) -> list[Message]:
        """The conversation that asks for a verdict on one answer, or on two in the order in which they are read."""
        for replies in answers:
            require_whole(question, replies)
        turns = [conversation(question.prompt), *question.follow_ups]
        sides = dict(zip(SIDES[self.kind], answers, strict=True))
        texts = _places(turns, question.references, sides)
        # In one pass, so that braces in an answer stay what they are.
        text = _PLACE.sub(lambda place: texts[place[1]], self.template)
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]


def _places(turns: list[str], references: Replies, sides: Mapping[str, Replies]) -> dict[str, str]:
    """What stands in the places of a template: {name: text}."""
    columns = {"question": tuple(turns), "ref_answer": references, **sides}
    places = {f"{name}_{turn}": text for name, texts in columns.items() for turn, text in enumerate(texts, 1)}
    return places if len(turns) > 1 else {**places, **{name: texts[0] for name, texts in columns.items() if texts}}


def conversation(prompt: Prompt) -> str:
    """A prompt as a judge reads it: a text or a single request as it is, a longer talk with its speakers' names."""
    if isinstance(prompt, str):
        return prompt.strip()
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


@dataclass(frozen=True)
class Family:
    """Templates that belong together: of one protocol, for questions of one turn or two, with references or without."""

    name: str
    templates: tuple[Template, ...]

    @property
    def identity(self) -> str:
        """Names the very words."""
        return digest([[asdict(template) for template in self.templates]], 16)

    def needed(self, questions: Iterable[Question], kinds: Iterable[str]) -> list[Template]:
        """The templates of all that will be asked: comparisons of whole answers, grades by turn. Errors: none fits."""
        pairs = [(question, kind) for question in questions for kind in kinds]
        parts = [(part, kind) for q, kind in pairs for part in (q.by_turn if kind == "single" else [q])]
        return [self.choose(part, kind) for part, kind in parts]

    def choose(self, question: Question, kind: str) -> Template:
        """The template that a question needs. Errors: none fits.

        Where there are both, references are shown in MT-Bench's categories only: math, reasoning and coding.
        """
        turns = len(question.asked)
        fits = [t for t in self.templates if t.kind == kind and t.turns == turns]
        with_references = [t for t in fits if t.references and len(question.references) >= turns]
        plain = [t for t in fits if not t.references]
        if with_references and (not plain or question.category in REFERENCED):
            return with_references[0]
        if plain:
            return plain[0]
        needs = " It needs a reference for each turn." if fits else ""
        raise DualHeadError(
            f"The judge's templates '{self.name}' have none of kind {kind} for question '{question.id}', which has "
            f"{turns} turns.{needs} Take template mt-bench, or a file of your own."
        )


def load_family(name: str) -> Family:
    """Templates by family ("mt-bench", "scores-v1", "alpaca") or by name, or of a JSON file or a folder of such.

    Errors: an unknown name, a file of another layout.
    """
    path = Path(name)
    if path.suffix == ".json" or path.is_dir():
        paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not paths:
            raise DualHeadError(f"There is no template (*.json) in '{name}'.")
        return Family(path.stem, tuple(_read(file, str(file)) for file in paths))
    packaged = sorted((f for f in files(__name__).iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    templates = [_read(file, file.name) for file in packaged]
    matches = tuple(t for t in templates if t.family == name) or tuple(t for t in templates if t.name == name)
    if not matches:
        labels = {label for t in templates for label in (t.family, t.name)}
        raise DualHeadError(
            f"There are no judge's templates '{name}'.{did_you_mean(name, labels)} Or name a JSON file."
        )
    return Family(name, matches)


def _read(file: Any, where: str) -> Template:
    with reading(f"'{where}' is not a judge's template", "Write a JSON object with name, kind, verdict and template."):
        values = json_value(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        try:
            return build(Template, values)
        except DualHeadError as error:
            raise DualHeadError(f"'{where}' is not a judge's template: {error}") from error
