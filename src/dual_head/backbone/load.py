"""From the name of a model to its config or to the model: transformers loads, and every error names the remedy.

It knows files, configs and dtypes; how a model is seen and run is in `decoder`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from dual_head.backbone.checkpoint import require_finite, require_sizes
from dual_head.backbone.dtypes import announce, automatic_dtype, require_dtype, stored_dtype
from dual_head.backbone.gguf import read_header, read_model, read_tokenizer
from dual_head.backbone.gguf import reading as reading_gguf
from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError
from dual_head.files.places import require_unaltered
from dual_head.files.reading import reading


def load_backbone(
    name_or_path: str,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a causal LM, of text or of images and text, with transformers; the options are transformers' own.

    name_or_path: a folder, a name on the hub, or a GGUF file, which is dequantised to fp32 or to `dtype`.
    dtype: "stored" is that of the files; "auto" too, but fp32, with a warning, where a processor would be slow in it.
    Errors: a name that is neither a folder with a model nor a hub model is refused with what was tried.
    """
    settings = {
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
        "revision": revision,
    }
    options = {name: value for name, value in settings.items() if value is not None}
    if isinstance(dtype, str):
        require_dtype(dtype)
    if not is_hub_name(name_or_path) and not Path(name_or_path).exists():
        raise DualHeadError(
            f"There is no backbone at '{name_or_path}'. Say where it is now: backbone=... in Python, --backbone or "
            "--model_name_or_path on the command line."
        )
    if is_gguf(name_or_path):
        return _load_gguf(Path(name_or_path), dtype, options)
    config = _config_or_none(name_or_path, trust_remote_code=trust_remote_code, revision=revision)
    if dtype == "auto" and quantization_config is None:
        dtype = _by_processor(name_or_path, config, device_map)
    with ThreadPoolExecutor(1) as pool, _loading(name_or_path):
        check = pool.submit(require_unaltered, Path(name_or_path))  # a hash of all weights takes as long as loading
        if config is None:
            _require_sizes(name_or_path, **options)  # else it was looked at when the config was read
        loaded: Any = auto_class(config).from_pretrained(
            name_or_path,
            dtype="auto" if dtype == "stored" else dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    check.result()
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise DualHeadError(
            f"'{name_or_path}' is not a whole backbone: it lacks {len(missing)} weights, the first is '{missing[0]}', "
            "and would run with random ones. Download it again, or give a causal language model."
        )
    require_finite(dict(model.named_parameters()), name_or_path)
    return model


def is_gguf(name_or_path: str | Path | None) -> bool:
    """Whether a backbone's place is a GGUF file."""
    return bool(name_or_path) and Path(name_or_path).suffix == ".gguf" and Path(name_or_path).is_file()


def _load_gguf(file: Path, dtype: str | torch.dtype, options: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a GGUF in plain tensors. Errors: options that are of other files."""
    attention = options.get("attn_implementation")
    if others := sorted(name for name in options if name != "attn_implementation"):
        raise DualHeadError(
            f"'{file}' is dequantised as it is read, which knows no {', '.join(others)}. Leave it out, or make the "
            "file a folder with scripts/real_backbone.py."
        )
    name = "float32" if dtype in ("auto", "stored") else str(dtype).removeprefix("torch.")
    with reading_gguf(file):
        lm = read_model(file, name, read_tokenizer(file, read_header(file)))
    if attention:
        lm.set_attn_implementation(attention)
    lm.config._name_or_path = str(file)
    require_finite(dict(lm.named_parameters()), str(file))
    return lm


def load_config(name_or_path: str, **options: Any) -> PreTrainedConfig:
    """Read a model's config with transformers. Errors: none there, damaged, absurd, or one that needs its own code."""
    if is_gguf(name_or_path):
        with reading_gguf(Path(name_or_path)):
            return AutoConfig.from_pretrained(Path(name_or_path).parent, gguf_file=Path(name_or_path).name)
    with reading(
        f"Could not read the config of the model '{name_or_path}'",
        "Give a folder that holds config.json, or the name of a model on the hub.",
        name_or_path,
    ):
        _require_sizes(name_or_path, **options)
        return AutoConfig.from_pretrained(name_or_path, **options)


def _require_sizes(name_or_path: str, **options: Any) -> None:
    """Refuse a config whose layers or heads could never be built, before it is; others report a missing one."""
    try:
        values, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=options.get("revision"))
    except OSError:
        return
    require_sizes(values)


def auto_class(config: PreTrainedConfig | None) -> Any:
    """Which of transformers' auto classes builds the model of a config: of text, unless it has images only beside it.

    config: None for one that cannot be read, as of an adapter, which is of text.
    """
    images_only = type(config) in AutoModelForImageTextToText._model_mapping and (
        type(config) not in AutoModelForCausalLM._model_mapping
    )
    return AutoModelForImageTextToText if images_only else AutoModelForCausalLM


def _config_or_none(name_or_path: str, **options: Any) -> PreTrainedConfig | None:
    try:
        return load_config(name_or_path, **options)
    except DualHeadError:  # an adapter, which has none; or what loading will refuse
        return None


def _by_processor(name_or_path: str, config: PreTrainedConfig | None, device_map: Any) -> torch.dtype | str:
    if config is None:
        return "stored"
    with _loading(name_or_path):
        dtype, file_dtype = automatic_dtype(config, device_map), stored_dtype(config)
    if dtype is None or file_dtype is None or dtype == file_dtype:
        return "stored"
    announce(name_or_path, file_dtype)
    return dtype


def load_context_length(name_or_path: str, *, trust_remote_code: bool = False) -> int | None:
    """Read a backbone's context length from its config alone, before anything large is loaded."""
    return context_length(load_config(name_or_path, trust_remote_code=trust_remote_code))


def context_length(config: PreTrainedConfig) -> int | None:
    """How many positions a model was made for; None where its config does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def _loading(name_or_path: str) -> AbstractContextManager[None]:
    return reading(
        f"Could not load the backbone '{name_or_path}'",
        "Give a folder that holds config.json and safetensors, or the name of a model on the hub.",
        name_or_path,
    )
