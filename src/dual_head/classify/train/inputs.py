"""What a training run of a classifier reads: its examples, held out where no file is, and how long they may be.

It knows files and options, and neither models nor tensors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import Console

from dual_head.backbone.load import load_context_length
from dual_head.classify.data.columns import explanation_of
from dual_head.classify.data.load import load_examples, overlap
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions
from dual_head.classify.train.options import ClassifyOptions
from dual_head.classify.types import Example, as_shares, in_words
from dual_head.data import is_held_out
from dual_head.errors import DualHeadError

INPUT, REST = 512, 1024  # tokens, where the positions of a backbone allow


class Sets(NamedTuple):
    """Training and held-out examples, the classes' names, the rows' format, and what was read (`RowReport.sources`)."""

    train: list[Example]
    held_out: list[Example]
    labels: tuple[str, ...]
    format: str
    sources: dict[str, dict[str, Any]]


def load_sets(options: ClassifyOptions, console: Console) -> Sets:
    """Read the examples of a run, some of them held out by hash where no held-out data are named.

    Where any row of either has shares, the labels of all are shares. Errors: fewer than two labels to tell apart.
    """
    explanation = explanation_of(options.explanation)
    arguments: dict[str, Any] = {
        "data_dir": options.data_dir,
        "format": options.dataset_format,
        "columns": options.column_names(),
        "template": options.template,
        "multi_label": options.problem_type == "multi_label_classification",
    }
    loaded = load_examples(
        options.dataset_name,
        split=options.dataset_split,
        labels=options.label_names(),
        max_rows=options.max_rows,
        explanation=explanation,
        **arguments,
    )
    labels, sources = loaded.labels, loaded.drops.sources
    if options.num_labels is not None and options.num_labels != len(labels):
        raise DualHeadError(f"--num_labels says {options.num_labels}, and the data have {len(labels)}: {labels}.")
    console.print(f"{loaded.drops.table()}\nlabels: {', '.join(labels)}")
    if options.eval_dataset_name or options.eval_split:
        held = load_examples(
            options.eval_dataset_name or options.dataset_name,
            split=options.eval_split or "validation",
            labels=labels,
            max_rows=options.max_eval_rows,
            explanation=1 if explanation == "all" else explanation,  # several rationales are still one input
            **arguments,
        )
        console.print(f"held out\n{held.drops.table()}")
        train, held_out, sources = list(loaded.examples), list(held.examples), sources | held.drops.sources
        if shared := len(overlap(train, held_out)):
            console.print(
                f"{shared} held-out inputs are among the training inputs: what is measured on them is memory."
            )
    else:
        train, held_out = _split(loaded.examples, options.held_out)
        held_out = (_first_of_each(held_out) if explanation == "all" else held_out)[: options.max_eval_rows]
    _require_two_labels(train, labels)
    return Sets(*_of_one_kind(train, held_out, len(labels)), labels, loaded.format, sources)


def _split(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    sides: tuple[list[Example], list[Example]] = [], []
    for example in examples:
        sides[is_held_out(example.side_key, share)].append(example)
    return sides


def _first_of_each(examples: Sequence[Example]) -> list[Example]:
    """Of examples that differ in their rationales only, the first: the others would count as rows of their own."""
    unique: dict[Example, Example] = {}
    for example in examples:
        unique.setdefault(replace(example, rationale=""), example)
    return list(unique.values())


def _require_two_labels(train: Sequence[Example], labels: Sequence[str]) -> None:
    kinds = {example.label for example in train if example.label is not None}
    if len(kinds) < 2:
        problem = f"all have the label '{in_words(kinds.pop(), labels)}'" if kinds else "have no label"
        raise DualHeadError(
            f"The {len(train)} training rows {problem}, and a classifier needs two to tell apart. Check --columns and "
            "--labels, read more with --max_rows, or keep fewer aside with --held_out."
        )


def _of_one_kind(train: list[Example], held_out: list[Example], classes: int) -> tuple[list[Example], list[Example]]:
    """Both sets with shares for classes where any row has shares: what a label is cannot depend on the batch."""
    if not any(isinstance(example.label, tuple) for example in (*train, *held_out)):
        return train, held_out

    def shared(rows: list[Example]) -> list[Example]:
        return [row if row.label is None else replace(row, label=as_shares(row.label, classes)) for row in rows]

    return shared(train), shared(held_out)


def lengths_of(options: ClassifyOptions) -> ClassifyTokenizeOptions:
    """The longest inputs and rationales, by the options or the backbone's positions. Errors: more than those."""
    positions = load_context_length(options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    room = positions or INPUT + REST
    inputs, rest = options.max_input_length, options.max_rationale_length
    inputs = min(INPUT, room // 2 if rest is None else max(1, room - rest)) if inputs is None else inputs
    rest = max(0, min(REST, room - inputs)) if rest is None else rest
    lengths = ClassifyTokenizeOptions(
        max_input_length=inputs, max_rationale_length=rest, truncate_inputs=options.truncate_inputs
    )
    return lengths.within(positions)
