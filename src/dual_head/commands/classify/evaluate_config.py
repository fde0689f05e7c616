"""What a YAML file says of an evaluation: the flags of `classify evaluate`, or the held-out data of a training config.

It knows names of options, and neither classifiers nor rows.
"""

import argparse
from pathlib import Path
from typing import Any

from dual_head.commands.flags import checked, read_options
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


def apply_config(parser: argparse.ArgumentParser, file: Path, *, allow_code: bool = False) -> None:
    """Take a YAML file's values as defaults, which flags override.

    A training config gives the folder that it trains, as the default "trained", and the data that it holds out: those
    of eval_dataset_name, another split, or the same share of the training data. Errors: an unreadable file, an unknown
    key (the nearest is offered), code that is named without `allow_code`.
    """
    values = read_options(file, allow_code=allow_code)
    flags = {action.dest: action for action in parser._actions}
    if not set(values) <= set(flags):
        values = _of_training(values, file, set(flags))
    trained = values.pop("trained", None)
    if isinstance(values.get("classifier"), str):
        values["classifier"] = [values["classifier"]]
    given = {name: checked(flags[name], value, file) for name, value in values.items()}
    parser.set_defaults(**given, trained=trained)


def _of_training(values: dict[str, Any], file: Path, own: set[str]) -> dict[str, Any]:
    """The options here that those of a training config stand for."""
    # Imported late: its parser is transformers' too.
    from dual_head.commands.classify import train

    known = {action.dest for action in train.build_parser()._actions} | set(train.ALIASES)
    flat = {key: value for key, value in values.items() if key not in train.SECTIONS or not isinstance(value, dict)}
    for section in train.SECTIONS:
        flat |= values[section] if isinstance(values.get(section), dict) else {}
    for key in flat:
        if key not in known | own:
            raise DualHeadError(f"Unknown key '{key}' in '{file}'.{did_you_mean(key, known | own)}")
    named = {train.ALIASES.get(key, (key,))[0]: value for key, value in flat.items() if key != "checkpoint"}
    found = {HELD_OUT[key]: value for key, value in named.items() if key in HELD_OUT}
    if "dataset" in found or "split" in found:
        found = {"dataset": named.get("dataset_name"), "split": "validation", **found}
    else:
        # As training does where there are no other data: its hash of the input says who is held out.
        found |= {"dataset": named.get("dataset_name"), "split": named.get("dataset_split") or "train"}
        found |= {"max_rows": named.get("max_rows"), "held_out": named.get("held_out", train.ClassifyOptions.held_out)}
    common = ("device", "dtype", "device_map", "attn_implementation", "trust_remote_code")
    found |= {key: named[key] for key in common if key in named}
    return found | {"trained": [str(named.get("output_dir") or train.build_parser().get_default("output_dir"))]}
