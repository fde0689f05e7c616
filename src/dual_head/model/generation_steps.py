"""What transformers' `generate` asks of a model on its way: what it makes of a request, step by step.

The inputs of a step are the backbone's to say, the masks are the guides' too, and the strengths of a request stay with
it. It knows transformers' protocol, and neither what guides add nor how text becomes tokens.
"""

import copy
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from dual_head.backbone.decoder import Backbone
from dual_head.errors import DualHeadError
from dual_head.model.generate import NOT_PAGED
from dual_head.model.guide_set import GuideSet
from dual_head.model.inner_calls import at_request, require_no_own_drafts, without_request


class GenerationSteps:
    """The steps of `generate` for an aligned model; it goes before transformers' `GenerationMixin`."""

    backbone: Backbone
    guides: GuideSet

    @property
    def _can_compile_fullgraph(self) -> bool:
        """Whether transformers may compile a step: what is added between layers comes by hooks, which no graph has."""
        return not self.guides.steer_layers(self.guides)

    @property
    def _is_stateful(self) -> bool:
        """Whether it cannot go back to fewer tokens, so that transformers must not try drafts on it."""
        return self.backbone.lm._is_stateful

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse transformers' own manager, whose rows have no strengths."""
        del args, kwargs
        raise DualHeadError(NOT_PAGED)

    def create_masks_for_generate(self, config: Any, **inputs: Any) -> dict[str, Any]:
        """Make all masks ahead of a compiled step: the backbone's as it wants them, and the guides' own."""
        del config
        return self.guides.masks_ahead(**inputs)

    # What transformers makes of a request is the backbone's to say: which positions an image takes, what of it is read
    # in the first pass alone, how it is repeated for beams.

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs of one step as the backbone's own `generate` makes them, with masks for the guides too."""
        lm = copy.copy(self.backbone.lm)
        vars(lm)["create_masks_for_generate"] = self.create_masks_for_generate
        return lm.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)  # pyright: ignore[reportCallIssue]

    def _prepare_position_ids_for_generation(self, *args: Any) -> Tensor:
        return self.backbone.lm._prepare_position_ids_for_generation(*args)  # pyright: ignore[reportCallIssue]

    def _maybe_prepare_encoder_kwargs_for_generation(self, *args: Any) -> dict[str, Any]:
        return self.backbone.lm._maybe_prepare_encoder_kwargs_for_generation(*args)  # pyright: ignore[reportCallIssue]

    def _expand_inputs_for_generation(self, *args: Any, **inputs: Any) -> tuple[Tensor, dict[str, Any]]:
        return self.backbone.lm._expand_inputs_for_generation(*args, **inputs)  # pyright: ignore[reportCallIssue]

    def _update_model_kwargs_for_generation(self, *args: Any, **inputs: Any) -> dict[str, Any]:
        return self.backbone.lm._update_model_kwargs_for_generation(*args, **inputs)  # pyright: ignore[reportCallIssue]

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        others = self.backbone.other_inputs
        super()._validate_model_kwargs({name: x for name, x in model_kwargs.items() if name not in others})  # pyright: ignore[reportAttributeAccessIssue]

    def _get_static_cache_init_shape(self):
        """Let a static cache take its sizes from the first keys: a gate's heads are not the backbone's."""
        return None if self.guides.cache_layers else super()._get_static_cache_init_shape()  # pyright: ignore[reportAttributeAccessIssue]

    def _get_candidate_generator(
        self, *, generation_config: GenerationConfig, model_kwargs: dict[str, Any], **inputs: Any
    ) -> Any:
        """Keep our own inputs from an assistant model, which would not know them. Errors: drafts of the model's own."""
        require_no_own_drafts(generation_config)
        return super()._get_candidate_generator(  # pyright: ignore[reportAttributeAccessIssue]
            generation_config=generation_config, model_kwargs=without_request(model_kwargs), **inputs
        )

    def _get_logits_processor(self, *, model_kwargs: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Let classifier-free guidance call the model at the strength of the request."""
        processors = super()._get_logits_processor(model_kwargs=model_kwargs, **inputs)  # pyright: ignore[reportAttributeAccessIssue]
        processors[:] = [at_request(processor, self, model_kwargs or {}) for processor in processors]
        return processors
