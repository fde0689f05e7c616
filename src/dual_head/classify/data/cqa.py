"""Data sets that come with rationales: e-SNLI, CREAK, and CommonsenseQA with a teacher's chains of thought.

It knows their rows and the layout of their files. Sources: Camburu et al. 2018; Onoe et al. 2021; Talmor et al.
2019, with the chains of thought of Hsieh et al. 2023.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dual_head.classify.data.formats import Found, Row, Rows, example_format, has, text
from dual_head.data import Dropped, RowReport
from dual_head.data.files import rows_of_file
from dual_head.data.sources import rows_of
from dual_head.errors import DualHeadError

_DEV = ("dev", "validation", "valid", "val")
_SPLITS = {"train": ("train",), "test": ("test",)} | dict.fromkeys(_DEV, _DEV)
LETTERS = "abcde"
CHAINS = "chain_of_thought"  # the column that our reading of the files adds


# ---- e-SNLI ----------------------------------------------------------------------------------------------


def esnli_rows(root: Path, split: str, drops: RowReport) -> Rows | None:
    """Rows of e-SNLI's aligned files s1.SPLIT, s2.SPLIT, labels.SPLIT and preproc1_expl_{1,2,3}.SPLIT."""
    if not root.is_dir() or not any(root.glob("s1.*")) or not any(root.glob("labels.*")):
        return None
    present = {path.suffix[1:] for path in root.glob("s1.*")}
    splits = [name for name in _SPLITS.get(split, (split,)) if name in present]
    if not splits and split == "train" and "dev" in present:
        drops.notes[f"'{root}' has no train split; its dev split is read instead"] += 1
        splits = ["dev"]
    if not splits:
        raise DualHeadError(f"'{root}' has no split '{split}'. It has: {', '.join(sorted(present))}.")
    suffix = splits[0]
    files = {"premise": "s1", "hypothesis": "s2", "label": "labels"}
    files |= {
        f"explanation_{i}": f"preproc1_expl_{i}" for i in (1, 2, 3) if (root / f"preproc1_expl_{i}.{suffix}").exists()
    }
    rows = len(_lines(root / f"s1.{suffix}"))
    columns = {
        column: _lines(root / f"{file}.{suffix}", rows if "expl" in file else None) for column, file in files.items()
    }
    lengths = {f"{files[column]}.{suffix}": len(lines) for column, lines in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DualHeadError(
            f"The files in '{root}' do not belong together: they have {lengths} lines. Copy them again."
        )
    aligned = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return ((row, f"{root / f's1.{suffix}'}:{i}") for i, row in enumerate(aligned, 1))


def _lines(file: Path, rows: int | None = None) -> list[str]:
    # str.splitlines would cut at characters that stand inside sentences.
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DualHeadError(f"'{file}' is not UTF-8 text ({error.reason}). Copy it again.") from error
    # What follows the last line break is the last explanation, which may be blank, or nothing.
    return lines[:-1] if not lines[-1] and len(lines) != rows else lines


@example_format(
    "esnli",
    matches=lambda row: has(row, "premise", "hypothesis", "explanation_1"),
    labels=("entailment", "neutral", "contradiction"),
    layout=esnli_rows,
)
def esnli(row: Row) -> Found:
    """e-SNLI: premise, hypothesis, and up to three human explanations."""
    explanations = tuple(text(row, f"explanation_{i}", "") for i in (1, 2, 3) if f"explanation_{i}" in row)
    premise = text(row, "premise")
    return Found(
        f"Premise: {premise}\nHypothesis: {text(row, 'hypothesis')}",
        row.get("label"),
        rationales=explanations,
        id=text(row, "pairID", ""),
        together=premise,  # most have three hypotheses
    )


# ---- CREAK -----------------------------------------------------------------------------------------------


@example_format(
    "creak",
    matches=lambda row: has(row, "sentence", "explanation"),
    labels=("false", "true"),
)
def creak(row: Row) -> Found:
    """CREAK: a claim, true or false, with one human explanation."""
    explanations = (text(row, "explanation", ""),)
    return Found(text(row, "sentence"), row.get("label"), rationales=explanations, id=text(row, "ex_id", ""))


# ---- CommonsenseQA ---------------------------------------------------------------------------------------


def cqa_rows(root: Path, split: str, drops: RowReport) -> Rows | None:
    """Rows of cqa_SPLIT.json with chains of thought of SPLIT_CoT_0.json, SPLIT_CoT_1.json, ... beside or in palm/."""
    if root.is_file():
        named = re.fullmatch(r"cqa_(\w+)\.json", root.name)
        files = {named[1]: root} if named else {}
        splits = list(files)
    else:
        files = {path.stem.removeprefix("cqa_"): path for path in root.glob("cqa_*.json")}
        splits = [name for name in _SPLITS.get(split, (split,)) if name in files]
    if not files:
        return None
    if not splits:
        raise DualHeadError(f"'{root}' has no split '{split}'. It has: {', '.join(sorted(files))}.")
    file = files[splits[0]]
    rows = list(rows_of(str(file), split, None, drops))
    chains = _chains(file.parent, splits[0], drops)
    if not chains:
        drops.notes["no chains of thought beside the questions; human explanations instead"] += 1
        return iter(rows)
    if len(chains) != len(rows):
        raise DualHeadError(f"'{file}' has {len(rows)} rows and {len(chains)} chains of thought. Copy the files again.")
    both = zip(rows, chains, strict=True)
    return (({**row, CHAINS: chain} if isinstance(row, dict) else row, where) for (row, where), chain in both)


def _chains(folder: Path, split: str, drops: RowReport) -> list[Any]:
    """All chains of thought of a split, the files in the order of their numbers."""
    for place in (folder, folder / "palm"):
        matches = {
            file: re.fullmatch(rf"{split}_CoT_(\d+)\.json", file.name) for file in place.glob(f"{split}_CoT_*.json")
        }
        numbers = {int(match[1]): file for file, match in matches.items() if match}
        if numbers:
            if sorted(numbers) != list(range(len(numbers))):
                raise DualHeadError(
                    f"'{place}' has {split}_CoT files {sorted(numbers)}; one is missing. Copy it there."
                )
            return [chain for number in sorted(numbers) for chain in _array(numbers[number], drops)]
    return []


def _array(file: Path, drops: RowReport) -> list[Any]:
    rows = [row for row, _ in rows_of_file(file, drops)]
    if None in rows:
        raise DualHeadError(f"'{file}' is no whole JSON. Copy it again.")
    return rows


def teacher_said(chain: str, choices: int) -> tuple[str, str] | None:
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


@example_format(
    "cqa",
    matches=lambda row: isinstance(_choices(row), (dict, list)),
    labels=tuple(LETTERS),
    layout=cqa_rows,
    hub=("tau/commonsense_qa", None),
)
def cqa(row: Row) -> Found:
    """CommonsenseQA: a question and up to five choices, which the input lists by letter.

    The teacher's answer is kept as it is, right or wrong; where it cannot be read, the human explanation and the
    right answer stand in.
    """
    question, choices, label = _asked(row)
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    notes = ["a question that lists a choice twice"] if len(set(choices)) < len(choices) else []
    chain = row.get(CHAINS)
    reply = teacher_said(chain, len(choices)) if isinstance(chain, str) else None
    if reply is None:
        rationale = text(row, "abstractive_explanation", "")
        right = f"({label}) {choices[LETTERS.index(label)]}" if label else ""
        notes += ["no teacher's answer to be read; the human explanation instead"] if chain is not None else []
    else:
        rationale, letter = reply
        chosen = choices[LETTERS.index(letter)]
        letter = LETTERS[choices.index(chosen)]  # of a choice listed twice, the one that the label is read as
        right = f"({letter}) {chosen}"
        notes += ["the teacher's answer is another than the label's"] if label and letter != label else []
    return Found(
        f"{question}\nAnswer choices:\n{listed}",
        label,
        rationales=(rationale,) if rationale else (),
        answer=right if rationale else "",
        id=text(row, "id", ""),
        notes=tuple(notes),
    )


def _asked(row: Row) -> tuple[str, Sequence[str], str | None]:
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
            raise Dropped("choices that are no list")
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
