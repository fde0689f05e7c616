"""What generation, traces and scores need of an aligned model."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.config import AlignedConfig
from dual_head.model.alpha import Strengths
from dual_head.model.decode_step import Encoded
from dual_head.model.guide_set import GuideSet


class Aligned(Protocol):
    """An aligned model, for functions that `AlignedModel` calls: the class documents each of these."""

    config: AlignedConfig
    guides: GuideSet
    generation_config: Any  # transformers' GenerationConfig, or None

    @property
    def device(self) -> torch.device: ...
    def resolve_alpha(self, *args: Any, **kwargs: Any) -> tuple[Strengths, Tensor]: ...
    def encode(self, *args: Any, **kwargs: Any) -> Encoded: ...
    def distributions(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...
    def own_tokenizer(self) -> PreTrainedTokenizerBase: ...
    def require_same_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None: ...
