"""Align large language models at test time with small trained heads on a frozen decoder.

    z = lm_head(h + sum_k alpha_k g_k hidden_delta_k) + sum_k alpha_k g_k logit_delta_k

`from_backbone` attaches fresh guides, `dual-head train` trains one, `from_pretrained` and `attach` load them,
`generate(..., alpha=...)` steers with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# The module of each public name; imported on first use, so that the command line starts fast.
_HOMES = {
    "AlignedConfig": "config",
    "AlignedModel": "model",
    "DualHeadError": "errors",
    "DualHeadModel": "model.papers",
    "DualHeadReasoningModel": "classify.model",
    "Feedback": "data",
    "GuideTrainer": "train.trainer",
    "GuideTrainingArguments": "train.arguments",
    "HiddenConfig": "guides.hidden",
    "IAVModel": "model.papers",
    "LanguageModelConfig": "guides.language_model",
    "LinearConfig": "guides.linear",
    "LinearDecay": "model.alpha",
    "MAVModel": "model.papers",
    "Method": "methods",
    "MultilayerConfig": "guides.multilayer",
    "Pair": "data",
    "PairCollator": "data.collate",
    "PromptContrastConfig": "guides.prompt_contrast",
    "RewardHeadConfig": "guides.reward_head",
    "RewardModelConfig": "guides.reward_model",
    "SteeringConfig": "guides.steering",
    "TokenizeOptions": "data.tokenize",
    "load_feedback": "data.load",
    "load_pairs": "data.load",
    "merge": "export.merge",
    "method": "methods",
    "split_by_prompt": "data",
    "tokenize_feedback": "data.tokenize",
    "tokenize_pairs": "data.tokenize",
}

# Names of the documents for classes that have another name here.
_SEED_HOMES = {"MAVInference": "model.papers", "create_mav": "model.papers"}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from dual_head.classify.model import DualHeadReasoningModel as DualHeadReasoningModel
    from dual_head.config import AlignedConfig as AlignedConfig
    from dual_head.data import Feedback as Feedback
    from dual_head.data import Pair as Pair
    from dual_head.data import split_by_prompt as split_by_prompt
    from dual_head.data.collate import PairCollator as PairCollator
    from dual_head.data.load import load_feedback as load_feedback
    from dual_head.data.load import load_pairs as load_pairs
    from dual_head.data.tokenize import TokenizeOptions as TokenizeOptions
    from dual_head.data.tokenize import tokenize_feedback as tokenize_feedback
    from dual_head.data.tokenize import tokenize_pairs as tokenize_pairs
    from dual_head.errors import DualHeadError as DualHeadError
    from dual_head.export.merge import merge as merge
    from dual_head.guides.hidden import HiddenConfig as HiddenConfig
    from dual_head.guides.language_model import LanguageModelConfig as LanguageModelConfig
    from dual_head.guides.linear import LinearConfig as LinearConfig
    from dual_head.guides.multilayer import MultilayerConfig as MultilayerConfig
    from dual_head.guides.prompt_contrast import PromptContrastConfig as PromptContrastConfig
    from dual_head.guides.reward_head import RewardHeadConfig as RewardHeadConfig
    from dual_head.guides.reward_model import RewardModelConfig as RewardModelConfig
    from dual_head.guides.steering import SteeringConfig as SteeringConfig
    from dual_head.methods import Method as Method
    from dual_head.methods import method as method
    from dual_head.model import AlignedModel as AlignedModel
    from dual_head.model.alpha import LinearDecay as LinearDecay
    from dual_head.model.papers import DualHeadModel as DualHeadModel
    from dual_head.model.papers import IAVModel as IAVModel
    from dual_head.model.papers import MAVModel as MAVModel
    from dual_head.train.arguments import GuideTrainingArguments as GuideTrainingArguments
    from dual_head.train.trainer import GuideTrainer as GuideTrainer


def __getattr__(name: str):
    if home := (_HOMES | _SEED_HOMES).get(name):
        return getattr(import_module(f"{__name__}.{home}"), name)
    from dual_head.seed_names import PYTHON

    if name in PYTHON:
        from dual_head.errors import DualHeadError

        # Not an AttributeError: `from dual_head import name` would replace its message.
        raise DualHeadError(f"{name} does not exist here. {PYTHON[name]}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
