"""Aligned models on disk: the guides and what they belong to, never the backbone.

Loading refuses another backbone or tokenizer than the guides were trained with. It knows the files of a
checkpoint and the fingerprints in its config; how a model runs is elsewhere.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone import Backbone, load_backbone
from dual_head.checkpoint import (
    CONFIG_NAME,
    COPY,
    find_file,
    load_strictly,
    read_values,
    read_weights,
    require_kind,
    write_weights,
)
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.fingerprint import Fingerprint, tokenizer_fingerprint
from dual_head.fusion import require_fusion
from dual_head.model.costs import recorded_costs
from dual_head.places import atomic_folder
from dual_head.reading import reading

CODE_NAME = "modeling_dual_head.py"  # what transformers runs to find our classes, where it is told to trust the folder
AUTO_OPTIONS = ("adapter_kwargs", "code_revision")  # the auto classes' own, of no use to us
# What the auto classes and PushToHubMixin hand on, besides what we name ourselves.
SAVE_OPTIONS = ("repo_id", "token", "max_shard_size", "safe_serialization", "is_main_process")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "subfolder")


def hub_options(given: Mapping[str, Any], load: Callable[..., Any]) -> dict[str, Any]:
    """What of the options left over in `load` the hub takes. Errors: one that neither it nor the auto classes know."""
    # None is what other libraries hand on for an option that nobody chose.
    found = {k: v for k, v in given.items() if v is not None and not k.startswith("_") and k not in AUTO_OPTIONS}
    for name in found:
        if name not in HUB_OPTIONS:
            known = (*HUB_OPTIONS, *inspect.signature(load).parameters)
            raise DualHeadError(f"Unknown option '{name}' of from_pretrained.{did_you_mean(name, known)}")
    return found


def save_checkpoint(model: Any, folder: str | Path, *, push_to_hub: bool = False, **hub: Any) -> None:
    """Write what a model says is stored of it, and its config, whole or not at all, and to the hub where asked for.

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


class GuideLoading(PreTrainedModel):
    """A `PreTrainedModel` whose files are its guides; the part of `AlignedModel` that loads, saves and checks."""

    config: AlignedConfig
    backbone: Backbone
    guides: nn.ModuleDict
    transfers: nn.ModuleDict
    auto_classes: ClassVar = {  # transformers' class, and ours that it finds
        "AutoConfig": "dual_head.config.AlignedConfig",
        "AutoModelForCausalLM": "dual_head.model.AlignedModel",
    }
    _tokenizer: PreTrainedTokenizerBase | None = None  # given, or found when text first needs one
    _source: str | None = None  # where the guides were loaded from

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer the model was built with, or that lies with the guides or the backbone. Errors: none does."""
        if self._tokenizer is None:
            places = (self._source, self.config.backbone_name_or_path)
            self._tokenizer = find_tokenizer(places, self.config.tokenizer_fingerprint)
        if self._tokenizer is None:
            raise DualHeadError("Generating from text needs tokenizer=..., the one the guides were trained with.")
        return self._tokenizer

    def stored(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds: what each guide calls its own, and what fits it to this backbone."""
        tensors = {f"{name}.{key}": x for name, guide in self.guides.items() for key, x in guide.stored().items()}  # pyright: ignore
        moved = self.transfers.items()
        return tensors | {f"{name}.transfer.{key}": x for name, part in moved for key, x in part.state_dict().items()}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: str | Path | PreTrainedModel | None = None,
        config: AlignedConfig | None = None,
        dtype: str | torch.dtype = "auto",
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        switch: bool = False,
        vocab_map: bool = False,
        adapter: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        output_loading_info: bool = False,
        **hub: Any,
    ) -> Self:
        """Load guides and the backbone they were trained on.

        backbone: another place of, or an already loaded, same backbone; with `switch`, also another backbone,
        to which the guides are then moved: vocab_map, adapter and tokenizer as in `switch_backbone`; dtype, device_map,
        attn_implementation, quantization_config, trust_remote_code: for the backbone, as transformers has
        them (an explicit dtype is the guides' too); revision and hub options: for the guides;
        output_loading_info: also return what transformers does then, of which there is never any. Errors: no,
        corrupt or mismatching files; a backbone whose fingerprint is not the one trained on.
        """
        source = str(pretrained_model_name_or_path)
        hub = hub_options(hub, cls.from_pretrained)
        if (vocab_map or adapter) and not switch:
            raise DualHeadError("vocab_map and adapter say how guides move to another backbone: add switch=True.")
        if config is None:
            config = read_config(source, revision=revision, **hub)
        lm = (
            backbone
            if isinstance(backbone, nn.Module)
            else load_backbone(
                str(backbone or _recorded_backbone(config, source)),
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                quantization_config=quantization_config,
                trust_remote_code=trust_remote_code,
            )
        )
        building = reading(f"Cannot build the guides of '{source}' from its config.json", COPY)
        if switch and not _is_same(config, lm):
            moving: Any = cls  # what it takes to move is composition's
            weights = read_weights(source, revision=revision, **hub)
            with building:
                model = moving.load_moved(
                    config, lm, weights, source, tokenizer=tokenizer, vocab_map=vocab_map, adapter=adapter
                )
        else:
            with building:
                model = cls(config, lm)
            model.require_same_backbone(source)
            load_strictly(model.stored(), read_weights(source, revision=revision, **hub), source)
        if dtype not in ("auto", "stored"):
            model.guides.to(model.dtype)
            model.transfers.to(model.dtype)
        model._source = source
        info = {"missing_keys": set(), "unexpected_keys": set()}
        return (model, info) if output_loading_info else model  # pyright: ignore[reportReturnType] - as transformers

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: Any = None, push_to_hub: bool = False, **hub: Any
    ):
        """Write the guides and their config, whole or not at all; never the backbone nor its generation config.

        state_dict and the hub's options are transformers' protocol; only the guides' tensors are written.
        """
        del state_dict
        self.config.costs = recorded_costs(self.config, {name: x.numel() for name, x in self.stored().items()})
        save_checkpoint(self, save_directory, push_to_hub=push_to_hub, **hub)

    def require_same_backbone(self, source: str, config: AlignedConfig | None = None) -> None:
        """Refuse guides of `source` (with its `config`, or this model's) that were trained on another backbone."""
        recorded = (config or self.config).backbone_fingerprint
        if recorded is None:
            return
        differences = Fingerprint.from_dict(recorded).differences(self.backbone.fingerprint())
        if differences:
            raise DualHeadError(
                f"The guides in '{source}' were trained on another backbone than "
                f"'{self.backbone.config._name_or_path}': {'; '.join(differences)}. "
                "Load them with the backbone they were trained on "
                f"({(config or self.config).backbone_name_or_path or 'its name was not recorded'}), or move them to "
                "this one with switch_backbone (--backbone on the command line)."
            )

    def require_same_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer whose ids do not mean the tokens the guides were trained on."""
        vocabulary = self.backbone.shape.vocab_size
        if len(tokenizer) > vocabulary:
            raise DualHeadError(
                f"The tokenizer has {len(tokenizer)} tokens and the backbone {vocabulary} logits. "
                "Use the backbone's own tokenizer."
            )
        recorded = self.config.tokenizer_fingerprint
        if recorded and tokenizer_fingerprint(tokenizer) != recorded:
            raise DualHeadError(
                "This tokenizer is not the one the guides were trained with: its token ids mean other tokens. "
                f"Use the tokenizer saved beside the guides, or that of {self.config.backbone_name_or_path}."
            )


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Errors: none there, or a damaged one."""
    with reading(
        f"Could not load a tokenizer from '{name_or_path}'",
        "Say where it is with --tokenizer (in training: --tokenizer_name).",
        name_or_path,
    ):
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)


def find_tokenizer(places: Iterable[str | None], fingerprint: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the first place that has one, or has the one of that fingerprint; None where none does."""
    for place in places:
        try:
            found = load_tokenizer(place) if place else None
        except DualHeadError:
            continue
        if found and fingerprint in (None, tokenizer_fingerprint(found)):
            return found
    return None


def _is_same(config: AlignedConfig, lm: PreTrainedModel) -> bool:
    recorded = config.backbone_fingerprint
    return recorded is None or not Fingerprint.from_dict(recorded).differences(Backbone(lm).fingerprint())


def read_config(source: str, **hub: Any) -> AlignedConfig:
    """Read a checkpoint's config. Errors: none there, cut short, or of another kind of model."""
    values, path = read_values(source, **hub), find_file(source, CONFIG_NAME, **hub)
    require_fusion(values.get("fusion", "logits"))
    with reading(f"Cannot read the backbone's config in '{path}'", COPY):
        config = AlignedConfig.from_json_file(path)
        if config.backbone_config is None:
            raise KeyError("backbone_config")
        return config


def _recorded_backbone(config: AlignedConfig, source: str) -> str:
    if not config.backbone_name_or_path:
        raise DualHeadError(f"'{source}' does not say where its backbone is. Pass backbone=NAME_OR_FOLDER.")
    return config.backbone_name_or_path
