"""A folder of guides at a strength, on the backbone that it names."""

from contextlib import suppress
from typing import Any

from transformers import PreTrainedConfig

from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.evaluate.systems.identity import settings_of
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.specs import SystemSpec
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import resolve_alpha
from dual_head.model.pretrained import read_config


class GuidedSystem(ModelSystem):
    """An `AlignedModel` with some of its guides acting."""

    guided = True

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether config.json is that of guides."""
        with suppress(DualHeadError):
            return settings_of(path).get("model_type") == AlignedConfig.model_type
        return False

    def strengths(self, spec: SystemSpec) -> dict[str, float]:
        """The config's where none is given; where some are named, 0 for the others. Errors: as of `resolve_alpha`."""
        config = read_config(self.place)
        defaults = config.alpha or {}
        try:
            acting, strengths = resolve_alpha(spec.alpha, defaults=defaults, rows=1, fusion=config.fusion)
        except DualHeadError as error:
            raise DualHeadError(f"The system '{self.name}': {error}") from error
        by_name = dict(zip(acting.names, strengths[0].tolist(), strict=True))
        return {name: by_name.get(name, 0.0) for name in defaults}

    @property
    def base_path(self) -> str:
        """The guides' backbone."""
        return self.load.backbone or read_config(self.place).backbone_name_or_path or ""

    @property
    def recorded_config(self) -> PreTrainedConfig | None:
        """The backbone's configuration as the guides recorded it."""
        config = read_config(self.place).backbone_config
        return config if isinstance(config, PreTrainedConfig) else None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """That of the tokenizer that the guides were trained with."""
        return read_config(self.place).tokenizer_fingerprint

    @property
    def generate_options(self) -> dict[str, Any]:
        """The strength of each guide."""
        return {"alpha": dict(self.alpha)}

    def load_model(self):
        """Load the guides on their backbone. Errors: a tokenizer that they were not trained with."""
        where = {"backbone": self.load.backbone, "other_precision": self.load.other_precision}
        model = AlignedModel.from_pretrained(self.place, **where, **self.load_options)
        model.require_same_tokenizer(self.tokenizer)
        return model


SYSTEM = GuidedSystem
