"""Aligned models that begin with the guide of one paper; all else is `AlignedModel`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dual_head.errors import DualHeadError
from dual_head.guides import GuideConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.model.aligned import AlignedModel
from dual_head.seed_names import guides_folder


class _OneGuideModel(AlignedModel):
    """An aligned model that begins with one fresh guide, named after its method."""

    _guide_name: str
    _guide_config: type[GuideConfig]

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        guides: Mapping[str, GuideConfig] | None = None,
        *,
        guide: GuideConfig | None = None,
        **options: Any,
    ) -> "AlignedModel":
        """Attach one fresh guide of the class's kind, with `guide` as its options; else as `AlignedModel`."""
        if guides and guide:
            raise DualHeadError("Give guides={name: config, ...}, or guide=config for a single one; not both.")
        guides = guides or {cls._guide_name: guide or cls._guide_config()}
        return super().from_backbone(backbone, guides, **options)


class DualHeadModel(_OneGuideModel):
    """An aligned model with one Dual-Head guide "dual_head": a reward head and its attention gate."""

    _guide_name, _guide_config = "dual_head", RewardHeadConfig


class IAVModel(_OneGuideModel):
    """An aligned model with one linear guide "iav", an alignment vector per token."""

    _guide_name, _guide_config = "iav", LinearConfig


class MAVModel(_OneGuideModel):
    """An aligned model with one multi-layer guide "mav"; `switch_backbone` moves it to another backbone."""

    _guide_name, _guide_config = "mav", MultilayerConfig

    # As the MAV README spells them.
    generate_response = AlignedModel.generate
    switch_base_model = AlignedModel.switch_backbone


def create_mav(base_model: str | Path | PreTrainedModel, **options: Any) -> AlignedModel:
    """`MAVModel.from_backbone`, as the MAV README spells it."""
    return MAVModel.from_backbone(base_model, **options)


def MAVInference(alignment_checkpoint_path: str | Path, initial_base_model: str | None = None) -> MAVModel:
    """`MAVModel.from_pretrained`, as the MAV README spells it: guides, moved to another backbone where one is named.

    Errors: those of `from_pretrained`; a pickle, as best_alignment.pt is there.
    """
    folder = guides_folder(str(alignment_checkpoint_path))
    return MAVModel.from_pretrained(folder, backbone=initial_base_model, switch=initial_base_model is not None)
