"""What a YAML file says of an evaluation: the flags of `classify evaluate`, or the held-out data of a training config.

It knows names of options, and neither classifiers nor rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean

# What a training config says of its held-out data, and what it is here.
HELD_OUT = {
    "eval_dataset_name": "dataset",
    "eval_split": "split",
    "dataset_format": "format",
    "max_eval_rows": "max_rows",
    "data_dir": "data_dir",
    "columns": "columns",
    "template": "template",
}


def options_of(values: dict[str, Any], file: Path, names: Sequence[str]) -> dict[str, Any]:
    """The options of an evaluation: the file's own where it has no other, or those that a training config stands for.

    A training config gives the folder that it trains, as the classifier, and the data that it holds out: those of
    eval_dataset_name, another split, or the same share of the training data. Errors: a key of neither (the nearest is
    offered).
    """
    return values if set(values) <= set(names) else _of_training(values, file, set(names))


def _of_training(values: dict[str, Any], file: Path, names: set[str]) -> dict[str, Any]:
    """The options here that those of a training config stand for."""
    # Imported late: its parser is transformers' too.
    from dual_head.classify.train.options import ClassifyOptions
    from dual_head.cli.classify import train

    training = train.build_parser()
    known = names.union(training.names(), train.ALIASES)
    flat = {key: value for key, value in values.items() if key not in train.SECTIONS or not isinstance(value, dict)}
    for section in train.SECTIONS:
        flat |= values[section] if isinstance(values.get(section), dict) else {}
    for key in flat:
        if key not in known:
            raise DualHeadError(f"Unknown key '{key}' in '{file}'.{did_you_mean(key, known)}")
    named = {train.ALIASES.get(key, (key,))[0]: value for key, value in flat.items() if key != "checkpoint"}
    options = {HELD_OUT[key]: value for key, value in named.items() if key in HELD_OUT}
    if "dataset" in options or "split" in options:
        options = {"dataset": named.get("dataset_name"), "split": "validation", **options}
    else:
        # As training does where there are no other data: its hash of the input says who is held out.
        options |= {"dataset": named.get("dataset_name"), "split": named.get("dataset_split") or "train"}
        options |= {"max_rows": named.get("max_rows"), "held_out": named.get("held_out", ClassifyOptions.held_out)}
    common = ("device", "dtype", "device_map", "attn_implementation", "trust_remote_code")
    options |= {key: named[key] for key in common if key in named}
    return options | {"classifier": [str(named.get("output_dir") or training.get_default("output_dir"))]}
