"""One classifier trained under several controls at several seeds: the runs' records, and the figures of all of them.

Every run is of the same options, rows and steps, and is judged on the same held-out rows. It knows runs and their
folders; training is `run`'s, figures are `differences`', and tables are the command's.
"""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console

from dual_head.backbone.fingerprint import digest
from dual_head.classify.evaluate.differences import of_seeds
from dual_head.classify.evaluate.run import Measured, label_array, majority
from dual_head.classify.train.controls import Control, apply_control
from dual_head.classify.train.inputs import load_sets
from dual_head.classify.train.options import ClassifyOptions, identity_of
from dual_head.classify.train.run import train_classifier
from dual_head.classify.train.trainer import ClassifierTrainingArguments
from dual_head.classify.types import Example
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.places import atomic_folder, settle
from dual_head.files.reading import read_json
from dual_head.options import build

__all__ = ["HELD_OUT_FILE", "OVER", "Plan", "Record", "compare", "load_record", "plan_of", "train_one"]

HELD_OUT_FILE = "held_out.json"  # in the folder of a run that is done
OVER = ("pooled", "none")  # what the others are held against: the plain classifier, and the one that is asked about
CHOSEN_BY = ("load_best_model_at_end", "metric_for_best_model")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs of a folder have in common.

    identity: options, and digests of the rows; held_out: the rows that all are judged on; labels: their names.
    """

    identity: dict[str, Any]
    held_out: list[Example]
    labels: tuple[str, ...]
    multi_label: bool

    @property
    def key(self) -> str:
        """Short for the identity."""
        return digest(self.identity)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished run said: class logits [N, K] of the held-out rows, after so many steps; plan: its `Plan.key`."""

    plan: str
    control: str
    seed: int
    steps: int
    logits: list[list[float]]

    def save(self, folder: Path) -> None:
        """Write it into the run's folder, whole or not at all."""
        with atomic_folder(folder) as staging:
            (staging / HELD_OUT_FILE).write_text(json.dumps(asdict(self)) + "\n")


def load_record(folder: Path, plan: Plan) -> Record | None:
    """Read the record of a run; None where it is not done, or was another plan's. Errors: a damaged file."""
    file = folder / HELD_OUT_FILE
    settle(folder)
    if not file.is_file():
        return None
    record = build(Record, read_json(file, "Delete it: its run is judged again."))
    return record if record.plan == plan.key else None


def plan_of(options: ClassifyOptions, args: ClassifierTrainingArguments, controls: Sequence[Control]) -> Plan:
    """Read the rows once and say what all runs have in common, before any of them begins.

    Errors: an unknown control, or one that these rows cannot be put under; nothing held out.
    """
    for control in controls:
        if control not in get_args(Control):
            raise DualHeadError(f"Unknown control '{control}'.{did_you_mean(control, get_args(Control))}")
    train, held_out, labels, *_ = load_sets(options, Console(quiet=True))
    for control in controls:
        apply_control(control, train)  # what it has to spoil is not to be missed after hours
    judged = [row for row in held_out if row.label is not None]
    if not judged:
        raise DualHeadError(
            "Nothing is held out, so there is nothing to compare on. Give --eval_dataset_name, --eval_split or a "
            "larger --held_out."
        )
    shared = {key: value for key, value in identity_of(options, args).items() if key not in ("control", "seed")}
    rows = {"training_rows": _digest(train), "held_out_rows": _digest(judged)}
    return Plan(
        identity={**shared, **{key: str(getattr(args, key)) for key in CHOSEN_BY}, **rows},
        held_out=judged,
        labels=labels,
        multi_label=options.problem_type == "multi_label_classification",
    )


def _digest(examples: Sequence[Example]) -> str:
    return digest([asdict(example) for example in examples], 16)


def train_one(options: ClassifyOptions, args: ClassifierTrainingArguments, plan: Plan) -> Record:
    """Train one run, or go on with it, and classify the held-out rows with what it kept; all processes take part."""
    trainer = train_classifier(options, args)
    logits, _ = trainer.evaluate_once()
    steps = trainer.state.global_step
    if len(logits) != len(plan.held_out):
        raise DualHeadError(
            f"'{args.output_dir}' was judged on {len(logits)} rows, and the plan has {len(plan.held_out)}. The data "
            "changed meanwhile: start again in another --output_dir."
        )
    del trainer
    gc.collect()  # a Trainer is in circles, and the next run needs its memory
    return Record(plan=plan.key, control=options.control, seed=args.seed, steps=steps, logits=logits.double().tolist())


def compare(records: Mapping[str, Sequence[Record]], plan: Plan, *, resamples: int = 2000) -> dict[str, Any]:
    """Figures of all systems, each with its records in the order of the seeds.

    {"rows", "groups" where rows have some, "steps", "seeds", "majority", "systems": {control: {metric: ...}}}; see
    `differences.of_seeds` and `evaluation.majority`. Errors: runs of other seeds or of other numbers of steps.
    """
    every = [record for by_seed in records.values() for record in by_seed]
    seeds, steps = [[record.seed for record in runs] for runs in records.values()], {record.steps for record in every}
    if len(steps) != 1 or any(runs != seeds[0] for runs in seeds):
        raise DualHeadError(
            f"Runs are compared after equal steps at equal seeds, not after {sorted(steps)} at {seeds}. Train them "
            "with the same --max_steps and --seeds."
        )
    measured = {name: [_measured(record, plan) for record in runs] for name, runs in records.items()}
    first = next(iter(measured.values()))[0]
    groups = first.rows().groups
    return {
        "rows": len(plan.held_out),
        **({"groups": groups} if groups < len(plan.held_out) else {}),
        "steps": steps.pop(),
        "seeds": seeds[0],
        "majority": majority(first, resamples),
        "systems": of_seeds(
            {name: [one.rows() for one in runs] for name, runs in measured.items()}, over=OVER, resamples=resamples
        ),
    }


def _measured(record: Record, plan: Plan) -> Measured:
    return Measured(
        examples=plan.held_out,
        names=plan.labels,
        logits=np.array(record.logits),
        labels=label_array(plan.held_out, len(plan.labels)),
        temperature=1.0,
        multi_label=plan.multi_label,
        truncated=0,
    )
