"""The configuration of an aligned model, config.json of a checkpoint: which backbone, which guides, how strong."""

import copy
import json
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from dual_head.backbone.checkpoint import MODEL_TYPE, require_sizes
from dual_head.options import fit


class BackboneConfig(PreTrainedConfig):
    """What the config of a model beside a frozen decoder says of that decoder.

    backbone_config: the config of the backbone; backbone_name_or_path: where to load it from; backbone_fingerprint,
    tokenizer_fingerprint: of the backbone and tokenizer in training; checksums: {file: {"bytes", "sha256"}} of the
    weights beside it.
    """

    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] - as transformers' own configs

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_name_or_path: str | None = None
    backbone_fingerprint: dict | None = None
    tokenizer_fingerprint: str | None = None
    checksums: dict | None = None

    def __post_init__(self, **kwargs: Any):
        if isinstance(self.backbone_config, dict):
            require_sizes(self.backbone_config)
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        self.tie_word_embeddings = False  # nothing that is saved is tied; the backbone has its own ties
        super().__post_init__(**kwargs)


class AlignedConfig(BackboneConfig):
    """Configuration of `AlignedModel`.

    guides: {name: {"kind", "config", "cache_layers", "shape"}}, with "adapter" and "vocab_map" true if the guide was
    moved from the backbone of that shape to another; alpha: {name: default strength}; fusion: "logits" or
    "probabilities"; training: a record of the method and data; costs: what `inspect` shows (`model.costs`);
    backbone_probe: what the backbone says of fixed tokens, by which another precision of it is known.
    """

    model_type = MODEL_TYPE

    guides: dict | None = None
    alpha: dict | None = None
    fusion: str = "logits"
    training: dict | None = None
    costs: dict | None = None
    backbone_probe: dict | None = None

    def __post_init__(self, **kwargs: Any):
        self.guides = self.guides or {}
        self.alpha = fit(self.alpha or {}, dict[str, float], "alpha")
        super().__post_init__(**kwargs)

    @property
    def cache_layers(self) -> int:
        """How many layers the guides add to the generation cache."""
        return sum(guide["cache_layers"] for guide in (self.guides or {}).values())

    def to_json_string(self, use_diff: bool = True) -> str:
        """Write JSON as transformers does, but keep the order of the guides: their sum is rounded in it."""
        values = json.loads(super().to_json_string(use_diff=use_diff))
        for key in ("guides", "alpha"):
            if key in values:
                values[key] = {name: values[key][name] for name in getattr(self, key)}
        return json.dumps(values, indent=2) + "\n"

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the backbone's text config, with one more full-attention layer per cache layer of the guides.

        transformers builds every kind of cache from it: the guides' keys and values are kept, reordered, cropped and
        reset with those of the backbone.
        """
        if not isinstance(self.backbone_config, PreTrainedConfig):
            return self
        text = copy.deepcopy(self.backbone_config.get_text_config(decoder=decoder, encoder=encoder))
        if self.cache_layers:
            kinds, _ = get_layer_types_and_kwargs(text)
            text.num_hidden_layers += self.cache_layers
            if getattr(text, "num_kv_shared_layers", None):  # the last ones, which `kinds` names; none of the guides'
                text.num_kv_shared_layers = 0
            kinds = [*kinds, *["full_attention"] * self.cache_layers]
            name = text.attribute_map.get("layer_types", "layer_types")
            if isinstance(getattr(type(text), name, None), property):  # computed, as Jamba does, and not set
                text.__class__ = type(type(text).__name__, (type(text),), {name: kinds})
            else:
                text.layer_types = kinds
        return text
