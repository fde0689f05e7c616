"""Calls of the model that transformers' `generate` makes by itself, at the strength of the request.

Classifier-free guidance runs a second prompt; assistants draft. It knows who calls what, and nothing of guides.
"""

import copy
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


class InnerCalls:
    """The part of `AlignedModel` that is between transformers' `generate` and the model it calls."""

    def _get_candidate_generator(
        self, *, generation_config: GenerationConfig, model_kwargs: dict[str, Any], **inputs: Any
    ) -> Any:
        """Keep our own inputs from an assistant model, which would not know them. Errors: drafts of the model's own."""
        for name, why in DRAFTS.items():
            if getattr(generation_config, name, None):
                raise DualHeadError(f"{name} {why}. Use assistant_model=... or prompt_lookup_num_tokens instead.")
        theirs = {key: value for key, value in model_kwargs.items() if key not in REQUEST}
        return super()._get_candidate_generator(  # pyright: ignore[reportAttributeAccessIssue]
            generation_config=generation_config, model_kwargs=theirs, **inputs
        )

    def _get_logits_processor(self, *, model_kwargs: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Let classifier-free guidance call the model at the strength of the request."""
        processors = super()._get_logits_processor(model_kwargs=model_kwargs, **inputs)  # pyright: ignore[reportAttributeAccessIssue]
        request = {key: value for key, value in (model_kwargs or {}).items() if key in REQUEST}
        for i, processor in enumerate(processors):
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) and processor.model is self:
                processors[i] = _at_strength(processor, **request)
        return processors


def _at_strength(processor: Any, *, alpha: Any, guides: Strengths) -> Any:
    """The same processor, with a model that runs at alpha; schedules begin behind the prompt of this branch."""
    prompt = processor.unconditional_context["input_ids"]
    origin = 1 if prompt is None else prompt.shape[1]  # where there is none, the last token stands for it
    bound = copy.copy(processor)  # the caller may use theirs again
    bound.model = partial(processor.model, alpha=alpha, guides=replace(guides, origin=origin))
    return bound
