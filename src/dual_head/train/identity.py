"""What makes a run or a cache this one: what a resumed one must agree on, and what is said where it does not.

It knows values only; the folders that hold them are elsewhere.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from dual_head.errors import DualHeadError
from dual_head.methods import Method
from dual_head.train.options import RunOptions, SourceOptions

# Training arguments that older records lack.
RECORDED_LATER = (
    "train_sampling_strategy",
    "dataloader_drop_last",
    "lr_scheduler_kwargs",
    "adam_epsilon",
    "optim_args",
)
# What must not change between a killed run and the one that goes on with its checkpoints.
TRAINING_IDENTITY = (
    *("seed", "data_seed", "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "weight_decay"),
    *("warmup_steps", "max_grad_norm", "adam_beta1", "adam_beta2", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "bf16", "fp16", "optim", *RECORDED_LATER),
)
PLACES = ("model_name_or_path", "dataset_name", "tokenizer_name", "move_guides", "feature_cache")  # perhaps local
PLACEMENT = ("restart", "logits_budget_mb", "device_map", "attn_implementation")  # changes where, not what
DATA = "data"  # in a run's record: what was read, as `RowReport.sources` has it
OTHERWISE = "choose another --output_dir, or add --restart to delete what is there"


def identity_of(method: Method, options: RunOptions, args: TrainingArguments) -> dict[str, Any]:
    """Collect what makes a run this run: a resumed one must agree on all of it."""
    identity = identity_of_options(options, args, places=PLACES, placement=PLACEMENT)
    return json.loads(json.dumps(method.as_dict())) | identity


def identity_of_options(
    options: Any, args: TrainingArguments, *, places: Sequence[str], placement: Sequence[str]
) -> dict[str, Any]:
    """Collect what of options and arguments makes a run this run, as JSON has it.

    places: options that may be local, which are recorded by their full path; placement: those that change where a run
    computes and not what.
    """
    values = {key: value for key, value in asdict(options).items() if key not in placement}
    values |= {key: _full(values[key]) for key in places}
    training = {key: str(getattr(args, key)) for key in TRAINING_IDENTITY}
    return json.loads(json.dumps({**values, **training, "processes": args.world_size}))


def source_of(options: SourceOptions) -> dict[str, Any]:
    """Say where backbone and data are, a local one by its full path: what a feature cache records."""
    # Each run decides for itself whether to trust the code that comes with a model.
    omitted = (*PLACEMENT, "trust_remote_code")
    values = {f.name: getattr(options, f.name) for f in fields(SourceOptions) if f.name not in omitted}
    return values | {name: _full(values[name]) for name in PLACES if name in values}


def _full(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name and Path(name).exists() else name


# ---- what differs ------------------------------------------------------------------------------------------


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Say of each of these names whose values differ what was recorded and what is now."""
    return [
        f"{name}: {recorded.get(name)!r} there, {current.get(name)!r} now"
        for name in names
        if recorded.get(name) != current.get(name)
    ]


def check_same_run(
    recorded: Mapping[str, Any], current: Mapping[str, Any], folder: str, *, otherwise: str = OTHERWISE
) -> None:
    """Refuse to go on with another run's checkpoints, naming what differs; otherwise: other remedies."""
    names = (recorded.keys() | current.keys() - {*RECORDED_LATER}) - {DATA}
    changes = differences(recorded, current, sorted(names))
    if changes:
        raise DualHeadError(
            f"'{folder}' holds checkpoints of a run with other options ({'; '.join(changes[:4])}). "
            f"Put the options back, {otherwise}."
        )
    check_same_data(recorded.get(DATA), current.get(DATA), folder, otherwise=otherwise)


def check_same_data(recorded: Any, current: Any, folder: str, *, otherwise: str = OTHERWISE) -> None:
    """Refuse to go on with what was made of other data, naming what changed; None is what is not known."""
    if None in (recorded, current) or recorded == current:
        return
    before = recorded if isinstance(recorded, dict) else {}
    names = [name for name in sorted(before.keys() | current.keys()) if before.get(name) != current.get(name)]
    changes = "; ".join(_change(name, before.get(name), current.get(name)) for name in names[:4])
    raise DualHeadError(f"'{folder}' was written from other data ({changes}). Put the data back, {otherwise}.")


def _change(name: str, before: Any, now: Any) -> str:
    """Say how a source of data differs from what it was."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"'{name}' is {'read' if now else 'not read'} now, and was {'read' if before else 'not read'} then"
    unit = "bytes" if "bytes" in now else "rows"
    if before.get(unit) != now.get(unit):
        return f"'{name}' had {before.get(unit)} {unit}, and has {now.get(unit)} now"
    return f"'{name}' has as many {unit} as then, and other ones"
