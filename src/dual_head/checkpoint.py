"""Guides on disk: one safetensors file, written whole or not at all, read with the remedy in every error.

It knows files and tensors, not models. Whoever only looks at files waits for no torch: what needs it imports it.
"""

import json
import math
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME, SAFE_WEIGHTS_NAME = "config.json", "model.safetensors"  # as transformers has them
MODEL_TYPE = "dual_head"
# What config.json holds of ours; transformers writes keys of its own beside them.
CONFIG_KEYS = (
    "backbone_config",
    "backbone_name_or_path",
    "backbone_fingerprint",
    "tokenizer_fingerprint",
    "guides",
    "alpha",
    "fusion",
    "training",
    "costs",
)
VOCAB_MAP = "transfer.vocab_map"  # the end of a tensor's name that is a map of tokens, and no parameter
ENTRY_KEYS = {"kind", "config", "cache_layers", "shape"}  # of a guide in it


def write_weights(state: "dict[str, Tensor]", folder: Path) -> None:
    """Write tensors as safetensors into `folder`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / SAFE_WEIGHTS_NAME).chmod(0o644)  # safetensors makes it private; another user's server reads it too
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(None, str(error)) from error


def read_weights(source: str, **hub) -> "dict[str, Tensor]":
    """Read the guides' tensors from a folder or the hub. Errors: absent, truncated or corrupt files."""
    from safetensors.torch import load_file

    path = find_file(source, SAFE_WEIGHTS_NAME, **hub)
    with _whole(path):
        return load_file(path)


def read_sizes(source: str, **hub) -> dict[str, int]:
    """Read how many values each of the guides' tensors has, from the header alone. Errors: as `read_weights`."""
    path = find_file(source, SAFE_WEIGHTS_NAME, **hub)
    with _whole(path), safe_open(path, "np") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _whole(path: str):
    """Say with the remedy what safetensors says of a file that is not whole."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise DualHeadError(
            f"'{path}' is not a whole safetensors file ({error}). It was cut short or altered: copy it again, "
            "or train again with the same output folder to resume from the last whole checkpoint."
        ) from error


def read_values(source: str, **hub) -> dict[str, Any]:
    """Read a checkpoint's config.json as plain values. Errors: none there, cut short, or of another kind of model."""
    path = Path(find_file(source, CONFIG_NAME, **hub))
    try:
        values = json.loads(path.read_text())
        kind = values["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise DualHeadError(f"'{path}' is not a whole config.json. Copy it again.") from error
    if kind != MODEL_TYPE:
        raise DualHeadError(
            f"'{source}' is a model of type '{kind}', not a checkpoint of guides. Train one with 'dual-head train', "
            "or attach fresh guides with from_backbone."
        )
    # transformers writes keys of its own beside ours, so only what looks like one of ours mistyped is refused.
    absent = [name for name in CONFIG_KEYS if name not in values]
    for key in values:
        if near := get_close_matches(key, absent, n=1, cutoff=0.8):
            raise DualHeadError(f"Unknown key '{key}' in '{path}'. Did you mean '{near[0]}'?")
    for name, entry in (values.get("guides") or {}).items():
        if not isinstance(entry, dict) or not entry.keys() >= ENTRY_KEYS:
            raise DualHeadError(f"'{path}' describes the guide '{name}' in part only. Copy it again.")
    return values


def find_file(source: str, name: str, **hub) -> str:
    """Return the local path of a checkpoint's file, fetched from the hub when `source` is not a folder."""
    file = Path(source, hub.get("subfolder") or "", name)
    if file.is_file():
        return str(file)
    if Path(source).is_dir():
        raise DualHeadError(
            f"'{source}' holds no {name}, so it is not a checkpoint of guides. Train one with 'dual-head train'."
        )
    remedy = "Give the output folder of 'dual-head train', or the name of one on the hub."
    if not is_hub_name(source):
        raise DualHeadError(f"No checkpoint of guides at '{source}': there is no such folder. {remedy}")
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(source, name, **hub)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise DualHeadError(f"No checkpoint of guides at '{source}': {reason} {remedy}") from error
    return str(found)


def load_strictly(into: "dict[str, Tensor]", state: "dict[str, Tensor]", source: str) -> None:
    """Copy tensors into those of the same name; every name and shape must match."""
    import torch

    expected = {name: tuple(tensor.shape) for name, tensor in into.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise DualHeadError(
            f"The weights in '{source}' do not fit its config.json: {len(wrong)} tensors differ, the first is "
            f"'{wrong[0]}' (expected {expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}). "
            "Restore the matching pair of files."
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(state[name])
