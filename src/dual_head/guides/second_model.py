"""What guides that are whole models share: a second model beside the backbone, loaded or sharing its weights.

A LoRA trained on the backbone needs no second copy of it: adapters go into a view, which has every weight in common.
This file knows transformers' models and PEFT's adapters; each guide knows what its model's output means.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone.checkpoint import COPY, find_file, read_shapes
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.backbone.joint import Changes, LowRank
from dual_head.backbone.load import auto_class, load_backbone, load_config
from dual_head.backbone.views import shared_view
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.files.reading import read_json, reading
from dual_head.guides import build_guide
from dual_head.guides.base import Guide, GuideConfig, Parameters
from dual_head.guides.layers import require_positive

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SecondModelConfig(GuideConfig):
    """Options of a guide that is a model.

    model: a folder or hub name; None for the backbone itself, whose weights are then shared; tune: what is
    trained, a "lora" on the model, "full", or "none"; rank, lora_alpha, dropout, target_modules: PEFT's LoRA,
    W + (lora_alpha / rank) B A on the linear layers named, B = 0 at the start.
    """

    model: str | None = None
    tune: Literal["lora", "full", "none"] = "lora"
    rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.05
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self):
        if self.tune not in ("lora", "full", "none"):
            raise DualHeadError(f"tune must be 'lora', 'full' or 'none', not '{self.tune}'.")
        if self.tune != "none" and adapter_config(self.model):
            raise DualHeadError(f"'{self.model}' is an adapter that was trained before. Use it with tune=none.")
        if not 0 <= self.dropout < 1:
            raise DualHeadError(f"dropout must lie in [0, 1), not {self.dropout}.")
        require_positive(rank=self.rank)

    def moved_from(self, backbone: str | None) -> Self:
        """Stay on the model it was trained on when the guide moves to another backbone."""
        if self.model is not None:
            return self
        if not backbone:
            raise DualHeadError(
                "This guide is a part of its backbone, whose place was not recorded. Save the backbone to a folder, "
                "load it from there and attach the guide again; then it can move."
            )
        return replace(self, model=backbone)


class SecondModel(Guide):
    """A guide that is a model: it holds the tensors that are trained, and borrows everything else."""

    config: SecondModelConfig
    reads_tokens = True

    def __init__(self, config: SecondModelConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.weights = nn.ParameterList()  # those that are trained
        self._names: list[str] = []
        # Borrowed, so no submodules: (model, whether it moves with this guide rather than with the backbone).
        self._models: list[tuple[nn.Module, bool]] = []

    @property
    def models(self) -> list[nn.Module]:
        """Every model that it reads, shared ones among them."""
        return [model for model, _ in self._models]

    def _hold(self, model: nn.Module, *, moves: bool) -> None:
        """Take a model in, and hold its parameters that have a gradient."""
        self._models.append((model, moves))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._names.append(name)
                self.weights.append(parameter)

    @property
    def shares_prompts(self) -> bool:
        """Where it is the backbone itself; other models have not been tried."""
        return self.config.model is None

    def stored(self) -> dict[str, Tensor]:
        """What is trained; never a model that has a folder or name."""
        return dict(zip(self._names, self.weights, strict=True))

    def train(self, mode: bool = True) -> Self:
        """Switch the dropout of what is trained; frozen and shared layers stay in eval mode."""
        super().train(mode)
        for model, _ in self._models[:1]:
            model.train(mode and self.config.tune == "full")
            for name, module in model.named_modules():
                if "lora_dropout" in name:
                    module.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for model, moves in self._models:
            if moves:
                model._apply(fn)
        return self


def lora_config(config: SecondModelConfig, lm: PreTrainedModel, task: str | None = None) -> Any:
    """Make PEFT's configuration of a LoRA on a model, or on its decoder.

    Errors: peft is not installed; a name in target_modules that no layer has.
    """
    require_layers(lm, config.target_modules, "--guide.target_modules")
    return require("peft", "peft").LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        exclude_modules=left_out(lm),
    )


def require_layers(lm: PreTrainedModel, targets: str | Sequence[str], flag: str) -> None:
    """Refuse a target that no layer has as its name or the end of it: of several, PEFT leaves such a one out.

    A string is PEFT's to read: all-linear, or a pattern.
    """
    layers = [name for name, _ in lm.named_modules()]
    for target in [] if isinstance(targets, str) else targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            matrices = {name.split(".")[-2] for name, x in lm.named_parameters() if x.dim() == 2 and "." in name}
            raise DualHeadError(
                f"{type(lm).__name__} has no layer '{target}' to adapt ({flag})."
                f"{did_you_mean(target, {*matrices, 'all-linear'})}"
            )


def left_out(lm: PreTrainedModel) -> str | None:
    """A pattern of the layers that are not adapted.

    They are those beside a model's decoder of text, as of its images, which text never trains, and those that are no
    map of one vector to another, as the routers of Llama 4.
    """
    text, base = lm.get_decoder(), lm.base_model
    beside = [] if text is base else [x for x in base.children() if all(module is not text for module in x.modules())]
    names = [
        re.escape(name)
        for name, module in lm.named_modules()
        if any(module is x for x in beside) or (isinstance(module, nn.Linear) and not _is_map(module))
    ]
    return rf"({'|'.join(names)})(\..*)?" if names else None


def _is_map(layer: nn.Linear) -> bool:
    """Whether [rows, tokens, in] becomes [rows, tokens, out]: tried where a model has a class of its own for it."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    try:
        y: Any = layer(layer.weight.new_zeros(1, 2, layer.in_features))
    except (RuntimeError, IndexError):
        return False
    return isinstance(y, Tensor) and y.shape == (1, 2, layer.out_features)


@contextmanager
def injecting(model: nn.Module) -> Iterator[None]:
    """Put an adapter into a model: layers that PEFT cannot find are an error of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # GPT-2's Conv1D holds its weight the other way round; PEFT sees it and does right.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # Ranks that PEFT itself sets for fused experts, whichever way a version of transformers holds them.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        try:
            yield
        except ValueError as error:
            reason = str(error).splitlines()[0]
            if "dropout" in reason:  # experts, whose weights are not layers
                remedy = "Set the LoRA's dropout to 0 (--guide.dropout 0, in classify --lora_dropout 0), or name layers other than experts."
            elif "incompatible" in reason:  # what Mamba's kernels read by themselves
                remedy = "Name other layers (--guide.target_modules, in classify --lora_targets)."
            else:  # no layer has a name of the pattern
                remedy = "Name some of its layers in target_modules, or use all-linear."
            raise DualHeadError(f"LoRA finds nothing to adapt in {type(model).__name__}: {reason} {remedy}") from error


def low_rank_changes(lm: PreTrainedModel, backbone: Backbone) -> Changes | None:
    """What a view of the backbone adds to its linear layers; None if there is more to it than one plain LoRA."""
    modules, changes = dict(lm.named_modules()), {}
    for name, layer in backbone.lm.named_modules():
        module = modules.get(name)
        if module is layer or (type(module) is type(layer) and any(True for _ in layer.children())):
            continue
        change = _low_rank(module, layer)
        if change is None:
            return None
        changes[name] = change
    return changes


def _low_rank(adapted: Any, layer: nn.Module) -> LowRank | None:
    """W + s B A as PEFT holds it; None for its variants, for more adapters than one, and for anything else."""
    if type(adapted) is not require("peft", "peft").tuners.lora.Linear or adapted.base_layer is not layer:
        return None
    if adapted.merged or adapted.disable_adapters or len(adapted.active_adapters) != 1 or adapted.lora_variant:
        return None
    (adapter,) = adapted.active_adapters
    down, up = adapted.lora_A[adapter], adapted.lora_B[adapter]
    return None if up.bias is not None else LowRank(down, up, adapted.scaling[adapter])


def causal_lm(name: str | None, backbone: Backbone) -> PreTrainedModel:
    """Find a second causal LM, frozen: None or the backbone's own name share its weights.

    name: a folder or hub name of a model, of a PEFT adapter (on the backbone or on another model), or of a
    checkpoint of guides.
    """
    if shares_weights(name, backbone):
        lm = shared_view(backbone.lm)
    else:
        lm = load_backbone(str(_base_of(name)), dtype=backbone.lm.dtype)
        lm = lm.requires_grad_(False).eval().to(backbone.output_device)  # pyright: ignore[reportArgumentType]
    if adapter_config(name):
        lm = adapted(lm, str(name)).requires_grad_(False)
    return lm


def adapted(lm: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with a PEFT adapter in its layers. Errors: a damaged adapter, or one of another model."""
    peft = require("peft", "peft")
    with reading(f"Could not load the adapter '{folder}'", COPY), injecting(lm):
        return peft.PeftModel.from_pretrained(lm, folder).get_base_model()


def is_backbone(name: str | None, backbone: Backbone) -> bool:
    """Whether a model of that name is the backbone itself; None is."""
    place = backbone.config._name_or_path
    if name is None or name == place:
        return True
    return bool(place) and Path(name).exists() and Path(place).exists() and Path(name).samefile(place)


def shares_weights(name: str | None, backbone: Backbone) -> bool:
    """Whether a model, or the base of an adapter, of that name is the backbone itself."""
    return is_backbone(_base_of(name), backbone)


def count_layers(name: str) -> int:
    """How many layers of cache a model fills, from its config alone."""
    return _config_of(name).get_text_config(decoder=True).num_hidden_layers


def count_forwards(name: str) -> float:
    """How many whole models a causal LM of that name runs per token: one, and what its own guides run; "" is none."""
    if not name:
        return 0
    config = _config_of(name)
    if config.model_type != AlignedConfig.model_type:
        return 1
    with torch.device("meta"):
        guides = [build_guide(entry, BackboneShape.from_dict(entry["shape"])) for entry in config.guides.values()]
    return 1 + sum(guide.extra_forwards for guide in guides)


def count_parameters(name: str | None, backbone: Parameters, model: Any = None) -> Parameters:
    """How many parameters a model has, from its files' headers alone; None is the backbone itself.

    model: the auto class that loads it, by default a causal LM's. What an adapter or a checkpoint of guides adds counts as its decoder's.
    """
    if name is None:
        return backbone
    config = _config_of(name)
    extra = 0
    if adapter_config(name):
        extra = _count_values(str(Path(name) / ADAPTER_WEIGHTS))
    elif config.model_type == AlignedConfig.model_type:
        extra, config = _count_values(find_file(name, SAFE_WEIGHTS_NAME)), config.backbone_config
    with torch.device("meta"):
        parameters = Parameters.of((model or auto_class(config)).from_config(config))
    return replace(parameters, whole=parameters.whole + extra, decoder=parameters.decoder + extra)


def _config_of(name: str) -> Any:
    """Read the config of a model, or of an adapter's base."""
    place = _base_of(name)
    try:
        return load_config(str(place))
    except DualHeadError as error:
        raise DualHeadError(
            f"A guide needs the model '{place}', which cannot be read. {error} "
            "Put it back there, or make the guide again with where it is now."
        ) from error


def _count_values(file: str) -> int:
    return sum(map(math.prod, read_shapes(file).values()))


def _base_of(name: str | None) -> str | None:
    """The model that an adapter of that name goes on; any other name as it is."""
    adapter = adapter_config(name)
    return str(adapter["base_model_name_or_path"]) if adapter else name


def adapter_config(name: str | None) -> dict[str, Any] | None:
    """Read a PEFT adapter's config; None for anything but an adapter's folder. Errors: one that names no base."""
    file = Path(name or "") / ADAPTER_CONFIG
    if not (name and file.is_file()):
        return None
    values = read_json(file, COPY)
    if not isinstance(values.get("base_model_name_or_path"), str):
        raise DualHeadError(f"'{file}' does not name the model it goes on (base_model_name_or_path). {COPY}")
    return values


def fit_vocabulary(logits: Tensor, size: int) -> Tensor:
    """Bring logits [..., V'] to [..., V]: padding of the embeddings is cut, or never chosen."""
    padding = size - logits.shape[-1]
    if padding <= 0:
        return logits[..., :size]
    least = logits.amin(-1, keepdim=True).expand(*logits.shape[:-1], padding)
    return torch.cat([logits, least], -1)
