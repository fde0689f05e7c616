"""A plain causal LM, by folder or hub name: what no other kind of system reads."""

from dual_head.backbone.load import load_backbone
from dual_head.evaluate.systems.base import LoadOptions
from dual_head.evaluate.systems.identity import settings_of
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.specs import SystemSpec


class PlainSystem(ModelSystem):
    """A model as it is."""

    def __init__(self, spec: SystemSpec, load: LoadOptions):
        settings_of(spec.path)  # refuses what is nothing at all
        super().__init__(spec, load)

    @classmethod
    def reads(cls, path: str) -> bool:
        """Nothing of its own: it is what is left."""
        del path
        return False

    @property
    def base_path(self) -> str:
        """Its own."""
        return self.place

    def load_model(self):
        """Load the model."""
        return load_backbone(self.base_path, **self.load_options).requires_grad_(False)


SYSTEM = PlainSystem
