"""Where the real chat model is that the published guides are of, and how it gets there.

DUAL_HEAD_REAL           a folder of your choice, which `make real` fills too
PREFIX/real/smollm2      beside Python's environment, where `make real` writes by default
CACHE/dual-head/smollm2  in the user's cache, where `fetch_chat_model` writes
the cache of the hub     the same model's bf16 weights, if they were downloaded before
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dual_head.backbone.gguf import HUB_NAME, write_backbone

__all__ = ["HUB_NAME", "ChatModel", "fetch_chat_model", "find_chat_model"]


@dataclass(frozen=True)
class ChatModel:
    """A folder or a name on the hub, and whether its weights are in another precision than those of the guides."""

    place: str
    other_precision: bool = False

    @property
    def flags(self) -> str:
        """The flags of a command that loads guides on it."""
        return f"--backbone {self.place}" + (" --other_precision" if self.other_precision else "")


def find_chat_model() -> ChatModel | None:
    """The model, if it is on this machine."""
    for folder in _folders():
        if (folder / "config.json").is_file():
            return ChatModel(str(folder))
    # Imported late: commands that name their model should start fast.
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "model.safetensors")
    if all(isinstance(try_to_load_from_cache(HUB_NAME, file), str) for file in files):
        return ChatModel(HUB_NAME, other_precision=True)
    return None


def fetch_chat_model() -> ChatModel:
    """The model, fetched into the user's cache where it is not on this machine. Errors: see `write_backbone`."""
    if model := find_chat_model():
        return model
    *_, folder = _folders()
    write_backbone(folder)
    return ChatModel(str(folder))


def _folders() -> Iterator[Path]:
    if place := os.environ.get("DUAL_HEAD_REAL"):
        yield Path(place)
    yield Path(sys.prefix, "real", "smollm2")
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dual-head", "smollm2")
