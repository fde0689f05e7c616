"""What a model's replies depend on, told from its files alone: no weight is loaded into a model.

Two folders with the same files are the same model, wherever they are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from dual_head.backbone.checkpoint import COPY, read_values
from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.backbone.load import load_config
from dual_head.config import AlignedConfig
from dual_head.data.conversation import first_ids
from dual_head.data.files import SUFFIXES
from dual_head.errors import DualHeadError
from dual_head.files.places import file_digest
from dual_head.files.reading import read_json
from dual_head.guides.second_model import ADAPTER_CONFIG, adapter_config

__all__ = ["file_sha256", "files_digest", "made_of", "parts_of", "settings_of", "sources_digest", "tokenizer_identity"]

_WEIGHTS = ("*.safetensors", "*.bin")  # a plain model may be of the time before safetensors
_READ = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"}  # weights, settings, and what writes token ids
_SETTINGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG)


def settings_of(path: str) -> dict[str, Any]:
    """What config.json of a folder or a hub model says. Errors: there is no such system."""
    place = Path(path).expanduser()
    if place.is_file():
        raise DualHeadError(f"'{path}' is a file, and files of answers end in: {', '.join(SUFFIXES)}.")
    local = place.exists() or place.is_absolute() or path.count("/") > 1 or path.startswith(".")
    try:
        if local and not (place / CONFIG_NAME).is_file():
            raise OSError("it has no config.json." if place.exists() else "there is no such folder.")
        return read_json(str(cached_file(str(place), CONFIG_NAME)), COPY)
    except OSError as error:
        raise DualHeadError(
            f"There is no system at '{path}': {str(error).splitlines()[0]} Give a folder of guides, a causal LM "
            "(folder or hub name), a PEFT adapter, or a file of answers."
        ) from error


def made_of(path: str) -> dict[str, Any]:
    """Everything a model computes with, as values for JSON: digests of files, and of what they lean on.

    Guides lean on a backbone, told by its fingerprint where the guides know it, and perhaps on further models; an
    adapter on its base. A model of the hub is told by its name and commit.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return {"hub": path, "commit": _commit(path)}
    adapter = adapter_config(str(place))
    if adapter is None and settings_of(path).get("model_type") == AlignedConfig.model_type:
        return _guides_made_of(place)
    files = [file for pattern in (*_SETTINGS, *_WEIGHTS) for file in sorted(place.glob(pattern))]
    digests: dict[str, Any] = {file.name: file_sha256(file) for file in files}
    return digests | {"base": made_of(adapter["base_model_name_or_path"])} if adapter else digests


def _guides_made_of(folder: Path) -> dict[str, Any]:
    config = read_values(str(folder))
    guides, backbone = config.get("guides") or {}, str(config.get("backbone_name_or_path") or "")
    stops = Path(backbone) / GENERATION_CONFIG_NAME
    return {
        "weights": {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        "guides": guides,
        "fusion": config.get("fusion"),
        "backbone": config.get("backbone_fingerprint") or made_of(backbone),
        "stops": file_sha256(stops) if backbone and stops.is_file() else None,
        "models": {name: made_of(name) for name in _models_of(guides)},
    }


def _models_of(guides: Mapping[str, Any]) -> list[str]:
    """Folders of the models that guides read, among their options."""
    values = {value for entry in guides.values() for value in entry["config"].values() if isinstance(value, str)}
    return sorted(value for value in values if Path(value).is_dir())


def parts_of(path: str) -> list[str]:
    """The model at a path, and all that it leans on: the backbone, the base, the models that guides read."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return [path]
    names: list[Any] = []
    with suppress(DualHeadError):  # what has no config leans on nothing
        if adapter := adapter_config(str(place)):
            names = [adapter["base_model_name_or_path"]]
        elif settings_of(path).get("model_type") == AlignedConfig.model_type:
            config = read_values(str(place))
            names = [config.get("backbone_name_or_path"), *_models_of(config.get("guides") or {})]
    return [path, *(part for name in names if name for part in parts_of(name))]


def _commit(name: str) -> str | None:
    try:
        return getattr(load_config(name), "_commit_hash", None)
    except DualHeadError:  # neither there nor cached: the name is all there is
        return None


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What turns a conversation into ids: the vocabulary, the chat template, the tokens in front."""
    return [tokenizer_fingerprint(tokenizer), tokenizer.chat_template, first_ids(tokenizer)]


def sources_digest(modules: Sequence[ModuleType | None]) -> str:
    """Name the text of modules; those without a source (built in, or typed into a session) by nothing."""
    files = [Path(getattr(m, "__file__", None) or "") for m in modules]
    texts = b"\0".join(file.read_bytes() for file in files if file.is_file())
    return hashlib.sha256(texts).hexdigest()[:16]


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, which is read once as long as its size and time stay."""
    stat = file.stat()
    return _sha256(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


def files_digest(folder: str) -> str:
    """SHA-256 of the files of a model's folder, "" where it is none."""
    if not Path(folder).is_dir():
        return ""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in _READ)
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, time: int) -> str:
    del size, time  # they are the key
    return file_digest(Path(path))["sha256"]
