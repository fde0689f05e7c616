"""Guides on disk: one safetensors file, written whole or not at all, read with the remedy in every error.

It knows files and tensors, not models. Functions that need torch import it, so that reading a config starts fast.
"""

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError
from dual_head.files.places import checksums, require_unaltered, settle
from dual_head.files.reading import COPY, json_value, read_json, reading
from dual_head.options import fit

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME, SAFE_WEIGHTS_NAME = "config.json", "model.safetensors"  # as transformers has them
MODEL_TYPE = "dual_head"
# What config.json holds of ours, and of what types; transformers writes keys of its own beside them.
CONFIG_TYPES: dict[str, Any] = {
    "backbone_config": dict | None,
    "backbone_name_or_path": str | None,
    "backbone_fingerprint": dict | None,
    "backbone_probe": dict | None,
    "tokenizer_fingerprint": str | None,
    "guides": dict[str, dict] | None,
    "alpha": dict[str, float] | None,
    "fusion": str,
    "training": dict | None,
    "costs": dict | None,
    "checksums": dict[str, dict] | None,
}
ENTRY_TYPES = {"kind": str, "config": dict, "cache_layers": int, "shape": dict}  # of a guide in it
VOCAB_MAP = "transfer.vocab_map"  # the end of a tensor's name that is a map of tokens, and no parameter
COUNTS = re.compile("layer|head|expert|num_labels|group")  # keys of config.json that count what is made one by one
MANY, LARGEST = 100_000, 2**53  # more than any model has of them, and than any number in a config
WHOLE = (
    "It was cut short or altered: copy it again, or train again with the same output folder to resume from the last "
    "whole checkpoint."
)


def write_weights(state: "dict[str, Tensor]", folder: Path) -> dict[str, dict[str, Any]]:
    """Write tensors as safetensors into `folder`, and return {file: size and SHA-256}, which config.json holds."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / SAFE_WEIGHTS_NAME).chmod(0o644)  # safetensors makes it private; another user's server reads it too
    return checksums([folder / SAFE_WEIGHTS_NAME])


def read_weights(source: str, **hub) -> "dict[str, Tensor]":
    """Read the guides' tensors from a folder or the hub. Errors: absent, cut or altered files, NaN or infinity."""
    from safetensors.torch import load_file

    path = find_file(source, SAFE_WEIGHTS_NAME, **hub)
    with _whole(path):
        tensors = load_file(path)
    require_unaltered(Path(path).parent)
    require_finite(tensors, path)
    return tensors


def read_sizes(source: str, **hub) -> dict[str, int]:
    """Read how many values each of the guides' tensors has, from the header alone. Errors: as `read_weights`."""
    path = find_file(source, SAFE_WEIGHTS_NAME, **hub)
    return {name: math.prod(shape) for name, shape in read_shapes(path).items()}


def read_shapes(path: str | Path) -> dict[str, list[int]]:
    """Read the shapes of a safetensors file's tensors from its header. Errors: a file that is not whole."""
    with _whole(path), safe_open(path, "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def require_finite(tensors: "Mapping[str, Tensor]", source: object) -> None:
    """Refuse weights that hold NaN or infinity: every reply would be made of nothing but them."""
    import torch

    from dual_head.backbone.dtypes import is_plain

    for name, x in tensors.items():
        if not is_plain(x) or x.itemsize < 2 or x.is_meta or not x.numel():
            continue
        # NaN and infinity are their tensor's least or largest value; nothing as large as the tensor is made.
        if not torch.stack(torch.aminmax(x.detach())).isfinite().all():
            raise DualHeadError(
                f"The weights in '{source}' hold NaN or infinity, in '{name}' first. Copy them again, or train "
                "again from the last checkpoint that was good."
            )


def _whole(path: object) -> Any:
    """Turn what safetensors raises for a file that is not whole into an error with the remedy."""
    return reading(f"'{path}' is not a whole safetensors file", WHOLE)


def read_values(source: str, **hub) -> dict[str, Any]:
    """Read a checkpoint's config.json as plain values. Errors: none there, cut short, or of another kind of model."""
    path = Path(find_file(source, CONFIG_NAME, **hub))
    values = read_json(path, COPY)
    kind = values.get("model_type")
    if kind != MODEL_TYPE:
        raise DualHeadError(
            f"'{source}' is a model of type {kind!r}, not a checkpoint of guides. Train one with 'dual-head train', "
            "or attach fresh guides with from_backbone."
        )
    # transformers writes keys of its own beside ours, so only what looks like one of ours mistyped is refused.
    missing_keys = [name for name in CONFIG_TYPES if name not in values]
    for key in values:
        if matches := get_close_matches(key, missing_keys, n=1, cutoff=0.8):
            raise DualHeadError(f"Unknown key '{key}' in '{path}'. Did you mean '{matches[0]}'?")
    require_types(values, path)
    return values


def require_sizes(values: Mapping[str, Any]) -> None:
    """Refuse numbers in a config that no model has: its layers, heads and experts are made one by one."""
    for key, value in values.items():
        if isinstance(value, dict):
            require_sizes(value)
        elif isinstance(value, int) and not abs(value) < (MANY if COUNTS.search(key) else LARGEST):
            raise ValueError(f"{key} is {value}")


def require_types(values: Mapping[str, Any], path: object) -> None:
    """Refuse a config.json whose values are of other types than ours."""
    with reading(f"Cannot read '{path}'", COPY):
        require_sizes(values)
        for key in CONFIG_TYPES.keys() & values.keys():
            fit(values[key], CONFIG_TYPES[key], key)
        for name, entry in (values.get("guides") or {}).items():
            for key, kind in ENTRY_TYPES.items():
                fit(entry[key], kind, f"{key} of the guide '{name}'")


def require_kind(folder: Path, kind: str) -> None:
    """Refuse a folder that holds a model of another model_type than what is written there."""
    file = folder / CONFIG_NAME
    try:
        values = json_value(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError):  # a damaged config, which writing again will mend
        return
    other = values.get("model_type") if isinstance(values, dict) else kind
    if values is not None and other != kind:
        raise DualHeadError(
            f"'{folder}' holds a model of type {other!r}, which this command did not write and would replace. Choose "
            "another output folder."
        )


def find_file(source: str, name: str, **hub) -> str:
    """Return the local path of a checkpoint's file, fetched from the hub when `source` is not a folder."""
    problem = f"No checkpoint of guides at '{source}'"
    remedy = "Give the output folder of 'dual-head train', or the name of one on the hub."
    with reading(problem, remedy):  # what no file can be named is an error of its own on every system
        file = Path(source, hub.get("subfolder") or "", name)
        settle(file.parent)
        if file.is_file():
            return str(file)
        if Path(source).is_dir():
            raise DualHeadError(
                f"'{source}' holds no {name}, so it is not a checkpoint of guides. Train one with 'dual-head train'."
            )
    remedy = f"{_nearest_folder(source)}{remedy}"
    if not is_hub_name(source):
        raise DualHeadError(f"{problem}: there is no such folder. {remedy}")
    with reading(problem, remedy):
        from transformers.utils.hub import cached_file

        return str(cached_file(source, name, **hub))


def _nearest_folder(source: str) -> str:
    """The question whether a folder beside `source` was meant; nothing where none has such a name."""
    place = Path(source)
    try:
        folders = [part.name for part in place.parent.iterdir() if (part / CONFIG_NAME).is_file()]
    except (OSError, ValueError):
        return ""
    matches = get_close_matches(place.name, folders, n=1)
    return f"Did you mean '{place.parent / matches[0]}'? " if matches else ""


def guide_folders(place: str | Path) -> dict[str, str]:
    """{name: folder} of the guides side by side in a folder, by name; empty where it holds none, or is itself one."""
    folder = Path(place)
    if not folder.is_dir() or (folder / CONFIG_NAME).exists():
        return {}
    parts = [part for part in sorted(folder.iterdir()) if not part.name.startswith("checkpoint-")]  # of a training
    return {part.name: str(part) for part in parts if (part / CONFIG_NAME).is_file()}


def load_strictly(into: "dict[str, Tensor]", state: "dict[str, Tensor]", source: str) -> None:
    """Copy tensors into those of the same name; every name and shape must match."""
    import torch

    require_same_shapes(into, state, source)
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(state[name])


def require_same_shapes(into: "Mapping[str, Tensor]", state: "Mapping[str, Tensor]", source: str) -> None:
    """Refuse tensors of other names or shapes than there is room for."""
    expected = {name: tuple(tensor.shape) for name, tensor in into.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != shapes:
        mismatches = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        first = mismatches[0]
        raise DualHeadError(
            f"The weights in '{source}' do not fit its config.json: {len(mismatches)} tensors differ, the first is "
            f"'{first}' (expected {expected.get(first, 'none')}, found {shapes.get(first, 'none')}). "
            "Restore the matching pair of files."
        )
