"""Calls of the model that transformers' `generate` makes by itself, at the strength of the request.

Classifier-free guidance runs a second prompt; assistants draft. It knows which call is made, and nothing of guides.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import GenerationConfig
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from dual_head.errors import DualHeadError
from dual_head.model.alpha import Strengths

REQUEST = ("alpha", "guides")  # what `generate` hands to every forward of the model, and to no other model
# Drafts of a model's own, by the setting that asks for them, and why they cannot be had.
DRAFTS = {
    "assistant_early_exit": "leaves out layers that guides read",
    "use_mtp": "drafts with layers of the backbone's own that no guide steers",
}


def without_request(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a forward without our own, which an assistant model would not know."""
    return {key: value for key, value in model_kwargs.items() if key not in REQUEST}


def require_no_own_drafts(generation_config: GenerationConfig) -> None:
    """Refuse drafts that a model makes with layers of its own."""
    for name, why in DRAFTS.items():
        if getattr(generation_config, name, None):
            raise DualHeadError(f"{name} {why}. Use assistant_model=... or prompt_lookup_num_tokens instead.")


def at_request(processor: Any, model: Any, model_kwargs: Mapping[str, Any]) -> Any:
    """Let a logits processor call the model at the strength of the request; others stay as they are."""
    if not isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) or processor.model is not model:
        return processor
    return _at_strength(processor, **{key: value for key, value in model_kwargs.items() if key in REQUEST})


def _at_strength(processor: Any, *, alpha: Any, guides: Strengths) -> Any:
    """The same processor, with a model that runs at alpha; schedules begin behind the prompt of this branch."""
    prompt = processor.unconditional_context["input_ids"]
    origin = 1 if prompt is None else prompt.shape[1]  # where there is none, the last token stands for it
    bound = copy.copy(processor)  # the caller may use the processor again
    bound.model = partial(processor.model, alpha=alpha, guides=replace(guides, origin=origin))
    return bound
