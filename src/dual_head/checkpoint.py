"""Guides on disk: one safetensors file, written whole or not at all, read with the remedy in every error.

It knows files and tensors, not models.
"""

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from dual_head.errors import DualHeadError

STAGING = ".writing-"
STALE_SECONDS = 3600


@contextmanager
def atomic_folder(target: Path):
    """Yield an empty folder; when the block ends well its files replace those in `target`, one rename each.

    A killed or failed write leaves `target` as it was. Errors: a target that cannot be written, a full disk.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f"{STAGING}*"):  # by a process that was killed while writing
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=target))
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{target}': {error.strerror}. Choose another output folder.") from error
    try:
        yield staging
        for written in sorted(staging.iterdir()):
            if (target / written.name).is_dir():
                raise OSError(None, f"a folder is where the file '{written.name}' goes")
        # The config last: whoever reads it finds the weights it describes.
        for written in sorted(staging.iterdir(), key=lambda file: (file.name == CONFIG_NAME, file.name)):
            written.replace(target / written.name)
    except OSError as error:
        raise DualHeadError(
            f"Writing to '{target}' failed: {error.strerror or error}. Nothing there was changed; "
            "free some space or choose another output folder."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write tensors as safetensors into `folder`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / SAFE_WEIGHTS_NAME).chmod(0o644)  # safetensors makes it private; another user's server reads it too
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(None, str(error)) from error


def read_weights(source: str, **hub) -> dict[str, Tensor]:
    """Read the guides' tensors from a folder or the hub. Errors: absent, truncated or corrupt files."""
    path = find_file(source, SAFE_WEIGHTS_NAME, **hub)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DualHeadError(
            f"'{path}' is not a whole safetensors file ({error}). It was cut short or altered: copy it again, "
            "or train again with the same output folder to resume from the last whole checkpoint."
        ) from error


def find_file(source: str, name: str, **hub) -> str:
    """Return the local path of a checkpoint's file, fetched from the hub when `source` is not a folder."""
    if Path(source).is_dir() and not (Path(source) / name).is_file():
        raise DualHeadError(
            f"'{source}' holds no {name}, so it is not a checkpoint of guides. Train one with 'dual-head train'."
        )
    try:
        found = cached_file(source, name, **hub)
    except OSError as error:
        raise DualHeadError(
            f"No checkpoint of guides at '{source}': {str(error).splitlines()[0]} "
            "Give the output folder of 'dual-head train', or the name of one on the hub."
        ) from error
    return str(found)


@torch.no_grad()
def load_strictly(into: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Copy tensors into those of the same name; every name and shape must match."""
    expected = {name: tuple(tensor.shape) for name, tensor in into.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise DualHeadError(
            f"The weights in '{source}' do not fit its config.json: {len(wrong)} tensors differ, the first is "
            f"'{wrong[0]}' (expected {expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}). "
            "Restore the matching pair of files."
        )
    for name, tensor in into.items():
        tensor.copy_(state[name])
