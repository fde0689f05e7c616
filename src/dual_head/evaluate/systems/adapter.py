"""A PEFT adapter, on the base that it names."""

from pathlib import Path
from typing import Any

from dual_head.backbone.load import load_backbone
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.guides.second_model import adapted, adapter_config


class AdapterSystem(ModelSystem):
    """The base with the adapter in it."""

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether the folder has an adapter's configuration."""
        return bool(adapter_config(str(Path(path).expanduser())))

    @property
    def base_path(self) -> str:
        """The adapter's base."""
        config: Any = adapter_config(self.place)
        return config["base_model_name_or_path"]

    def load_model(self):
        """Load the base, and put the adapter in."""
        return adapted(load_backbone(self.base_path, **self.load_options), self.place).requires_grad_(False)


SYSTEM = AdapterSystem
