"""Aligned models on disk: the guides and what they belong to, never the backbone.

Loading refuses another backbone or tokenizer than the guides were trained with. It knows the files of a
checkpoint and the fingerprints in its config; how a model runs is elsewhere.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.checkpoint import (
    CONFIG_NAME,
    COPY,
    find_file,
    read_values,
    read_weights,
    require_kind,
    write_weights,
)
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import Fingerprint, tokenizer_fingerprint
from dual_head.backbone.gguf import read_header, read_tokenizer
from dual_head.backbone.gguf import reading as reading_gguf
from dual_head.backbone.load import is_gguf, load_backbone
from dual_head.config import AlignedConfig, BackboneConfig
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.places import atomic_folder
from dual_head.files.reading import reading
from dual_head.guides import GuideConfig
from dual_head.model.fusion import require_fusion
from dual_head.model.guide_set import entry_of
from dual_head.model.precision import require_other_precision

CODE_NAME = "modeling_dual_head.py"  # what transformers runs to find our classes, with trust_remote_code
AUTO_OPTIONS = ("adapter_kwargs", "code_revision")  # the auto classes' own, of no use to us
# What the auto classes and PushToHubMixin hand on, besides what save_pretrained names.
SAVE_OPTIONS = ("repo_id", "token", "max_shard_size", "safe_serialization", "is_main_process")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "subfolder")


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of `load_backbone` out of the options of a loading method; the others stay."""
    names = inspect.signature(load_backbone).parameters.keys() & options.keys()
    return {name: options.pop(name) for name in names}


def hub_options(options: Mapping[str, Any], *loaders: Callable[..., Any]) -> dict[str, Any]:
    """The options left over by these loaders that the hub takes. Errors: one that it does not know."""
    # Other libraries hand on None for an option that is not set.
    hub = {k: v for k, v in options.items() if v is not None and not k.startswith("_") and k not in AUTO_OPTIONS}
    for name in hub:
        if name not in HUB_OPTIONS:
            names = [*HUB_OPTIONS, *(name for load in loaders for name in inspect.signature(load).parameters)]
            raise DualHeadError(f"Unknown option '{name}' of from_pretrained.{did_you_mean(name, names)}")
    return hub


def save_checkpoint(model: Any, folder: str | Path, *, push_to_hub: bool = False, **hub: Any) -> None:
    """Write the tensors of `model.stored()` and its config, whole or not at all, and push them to the hub.

    hub: what transformers hands to save_pretrained. Errors: an option that is not its protocol; a folder of another
    kind of model.
    """
    for name in hub:
        if name not in SAVE_OPTIONS:
            raise DualHeadError(f"Unknown option '{name}' of save_pretrained.{did_you_mean(name, SAVE_OPTIONS)}")
    require_kind(Path(folder), model.config.model_type)
    model.config.architectures = [type(model).__name__]
    module = CODE_NAME.removesuffix(".py")
    model.config.auto_map = {auto: f"{module}.{cls.rpartition('.')[2]}" for auto, cls in model.auto_classes.items()}
    with atomic_folder(Path(folder)) as staging:
        model.config.checksums = write_weights(model.stored(), staging)
        (staging / CODE_NAME).write_text(_code(model.auto_classes.values()))
        # By save_pretrained, transformers would copy the source of a class that it found through such a module.
        model.config.to_json_file(staging / CONFIG_NAME)
    if push_to_hub:
        model.push_to_hub(str(hub.get("repo_id") or Path(folder).name), token=hub.get("token"))


def _code(classes: Iterable[str]) -> str:
    """Write the module that imports these classes, for processes that have not imported us."""
    imports = [f"from {module} import {name}\n" for module, _, name in (cls.rpartition(".") for cls in classes)]
    return (
        '"""Loads this folder with trust_remote_code=True. It needs the library: pip install dual-head."""\n'
        + "".join(imports)
    )


def require_same_backbone(
    config: AlignedConfig, backbone: Backbone, source: str, *, other_precision: bool = False
) -> None:
    """Refuse guides of `source`, whose config this is, that were trained on another backbone.

    other_precision: take the same model in another precision too, see `require_other_precision`.
    """
    if config.backbone_fingerprint is None:
        return
    recorded, current = Fingerprint.from_dict(config.backbone_fingerprint), backbone.fingerprint()
    if not (differences := recorded.differences(current)):
        return
    if other_precision:
        require_other_precision(config, backbone, source)
        return
    remedy = f"Load them with the backbone they were trained on ({config.backbone_name_or_path or 'not recorded'})"
    if not recorded.size_differences(current):
        remedy += ", say other_precision=True (--other_precision) if this is the same model in another precision"
    raise DualHeadError(
        f"The guides in '{source}' were trained on another backbone than '{backbone.config._name_or_path}': "
        f"{'; '.join(differences)}. {remedy}, or move them to this one with switch_backbone (--backbone on the command "
        "line)."
    )


def is_same_backbone(config: AlignedConfig, lm: PreTrainedModel) -> bool:
    """Whether guides of this config were trained on that model, or nothing is recorded of theirs."""
    fingerprint = config.backbone_fingerprint
    return fingerprint is None or not Fingerprint.from_dict(fingerprint).differences(Backbone(lm).fingerprint())


def require_same_tokenizer(config: AlignedConfig, vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids do not mean the tokens the guides were trained on; vocabulary: logits there are."""
    if len(tokenizer) > vocabulary:
        raise DualHeadError(
            f"The tokenizer has {len(tokenizer)} tokens and the backbone {vocabulary} logits. "
            "Use the backbone's own tokenizer."
        )
    fingerprint = config.tokenizer_fingerprint
    if fingerprint and tokenizer_fingerprint(tokenizer) != fingerprint:
        raise DualHeadError(
            "This tokenizer is not the one the guides were trained with: its token ids mean other tokens. "
            f"Use the tokenizer saved beside the guides, or that of {config.backbone_name_or_path}."
        )


def require_fitting(
    config: AlignedConfig, backbone: Backbone, other: AlignedConfig, source: str, *, other_precision: bool = False
) -> None:
    """Refuse guides of `source`, whose config is `other`, that do not fit a model of this config and backbone."""
    if other.fusion != config.fusion:
        raise DualHeadError(
            f"The guides in '{source}' fuse {other.fusion}, this model {config.fusion}. "
            "Guides of one model fuse alike: train them with the same fusion."
        )
    fingerprints = {config.tokenizer_fingerprint, other.tokenizer_fingerprint} - {None}
    if len(fingerprints) > 1:
        raise DualHeadError(
            f"The guides in '{source}' were trained with another tokenizer than this model's. Use guides of its own."
        )
    require_same_backbone(other, backbone, source, other_precision=other_precision)


@dataclass(frozen=True)
class AttachedGuide:
    """A guide before it is attached: its entry, its default alpha, and the tensors {key: tensor} of a trained one."""

    entry: dict[str, Any]
    alpha: float = 1.0
    tensors: dict[str, Tensor] | None = None


def guide_to_attach(
    config: AlignedConfig,
    backbone: Backbone,
    guide: GuideConfig | str | Path,
    name: str | None,
    *,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    other_precision: bool = False,
) -> AttachedGuide:
    """What to attach to a model of this config and backbone: a fresh guide, or one of a checkpoint's folder.

    name: which of several; tokenizer: loads the model's, which a config with texts needs; other_precision: as
    `require_same_backbone` has it. Errors: no guide of that name, or several and no name; one that does not fit.
    """
    if isinstance(guide, GuideConfig):
        return AttachedGuide(entry_of(guide.with_tokenizer(tokenizer), backbone.shape))
    source = str(guide)
    checkpoint = read_config(source)
    guides = checkpoint.guides or {}
    if name is None and len(guides) == 1:
        (name,) = guides
    if name is None or name not in guides:
        problem = "holds several guides" if name is None else f"holds no guide '{name}'"
        raise DualHeadError(f"'{source}' {problem}: say which with source_name ({', '.join(guides)}).")
    prefix = f"{name}."
    tensors = {key.removeprefix(prefix): x for key, x in read_weights(source).items() if key.startswith(prefix)}
    require_fitting(config, backbone, checkpoint, source, other_precision=other_precision)
    return AttachedGuide(guides[name], (checkpoint.alpha or {}).get(name, 1.0), tensors)


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer, of a GGUF file the one that it holds. Errors: none there, or a damaged one."""
    if is_gguf(name_or_path):
        with reading_gguf(Path(name_or_path)):
            return read_tokenizer(Path(name_or_path), read_header(Path(name_or_path)))
    remedy = "Say where it is with --tokenizer (in training: --tokenizer_name)."
    if not Path(name_or_path).exists():
        remedy = "There is no such folder here: check the path, or the name on the hub and the connection."
    with reading(f"Could not load a tokenizer from '{name_or_path}'", remedy, name_or_path):
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)


def find_tokenizer(places: Iterable[str | None], fingerprint: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the first place that has one, or has the one of that fingerprint; None where none does."""
    for place in places:
        try:
            tokenizer = load_tokenizer(place) if place else None
        except DualHeadError:
            continue
        if tokenizer and fingerprint in (None, tokenizer_fingerprint(tokenizer)):
            return tokenizer
    return None


def read_config(source: str, **hub: Any) -> AlignedConfig:
    """Read a checkpoint's config. Errors: none there, cut short, or of another kind of model."""
    values, path = read_values(source, **hub), find_file(source, CONFIG_NAME, **hub)
    require_fusion(values.get("fusion", "logits"))
    with reading(f"Cannot read the backbone's config in '{path}'", COPY):
        config = AlignedConfig.from_json_file(path)
        if config.backbone_config is None:
            raise KeyError("backbone_config")
        return config


def load_lm(backbone: str | Path | PreTrainedModel, **options: Any) -> PreTrainedModel:
    """A loaded backbone as it is; one of a name or folder, loaded with these options of `load_backbone`.

    Errors: options beside a loaded one.
    """
    if not isinstance(backbone, nn.Module):
        return load_backbone(str(backbone), **options)
    if options:
        raise DualHeadError(f"The backbone is already loaded, so {', '.join(options)} would do nothing. Leave it out.")
    return backbone


def recorded_backbone(config: BackboneConfig, source: str) -> str:
    """Where the backbone of what lies in `source` is. Errors: it was not recorded."""
    if not config.backbone_name_or_path:
        raise DualHeadError(f"'{source}' does not say where its backbone is. Pass backbone=NAME_OR_FOLDER.")
    return config.backbone_name_or_path


@contextmanager
def loading_recorded(backbone: object, source: str, place: object) -> Iterator[None]:
    """Say of a backbone that is not at `place` that only the guides in `source` named it, where no other is given."""
    try:
        yield
    except DualHeadError as error:
        if backbone is not None or Path(str(place)).exists():
            raise
        raise DualHeadError(
            f"{error} The guides in '{source}' name this backbone: say where else it is with backbone=... (--backbone)."
        ) from error


def absolute(name_or_path: str | None) -> str | None:
    """A local folder's or file's full path, so that it is found from anywhere; a hub name as it is."""
    return str(Path(name_or_path).resolve()) if name_or_path and Path(name_or_path).exists() else name_or_path
