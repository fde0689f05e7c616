"""`generate` for people: text in and text out, a strength per request, and a trace of what guidance did.

Everything about decoding itself is transformers' own. This file adds alpha, plain-text prompts and the
length check; it knows no guide.
"""

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from dual_head.backbone import context_length
from dual_head.data import Dropped, Prompt
from dual_head.data.conversation import special_tokens_in, write
from dual_head.errors import DualHeadError
from dual_head.model.alpha import Alpha, requesting, strengths_of
from dual_head.model.trace import Trace, trace_sequences
from dual_head.reading import reason

if TYPE_CHECKING:
    from dual_head.model.aligned import AlignedModel

logger = logging.getLogger(__name__)
DEFAULT_NEW_TOKENS = 128
NOT_PAGED = (
    "Guides have no paged cache yet, so no generate_batch and no continuous batching. Use generate(), with the default "
    "cache or cache_implementation='static'."
)
TRANSFORMERS_NEW_TOKENS = 20  # what transformers generates where nothing says how much


class Traced(NamedTuple):
    """What `generate` would have returned, and what guidance did to every new token, one trace per row."""

    output: Any
    trace: list[Trace]


class TextGeneration:
    """The part of `AlignedModel` that people talk to."""

    @torch.no_grad()
    def generate(
        self: "AlignedModel",  # type: ignore[misc]
        inputs: Tensor | Prompt | Sequence[Prompt] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        alpha: Alpha = None,
        chat_template: bool = True,
        return_trace: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does, at a strength chosen per request.

        inputs: token ids as transformers takes them, a prompt, a conversation (a list of role/content
        dicts), or a list of either; text gives the new text back. tokenizer: for text, the one saved with the
        guides or beside the backbone where none is given. With text, a temperature above 0 means sampling.
        chat_template: a text is a user's message where the tokenizer has a chat template; False continues it as it is.
        alpha: see `resolve_alpha`; 0 gives the backbone's own output, bit for bit. return_trace: also return one
        `Trace` per row (costs one pass over the finished sequences). Every other argument is transformers' own.
        Errors: an empty prompt, one longer than the context, a wrong tokenizer, a wrong alpha.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if isinstance(inputs, Tensor) or inputs is None:
            return self._generate_ids(inputs, generation_config, tokenizer, alpha, return_trace, kwargs)
        several = _is_batch(inputs)
        tokenizer = tokenizer or self.own_tokenizer()
        self.require_same_tokenizer(tokenizer)
        texts_in: Sequence[Prompt] = inputs if several else [inputs]  # type: ignore[assignment, list-item]
        prompts = [conversation_of(prompt, tokenizer, chat_template=chat_template) for prompt in texts_in]
        batch = encode_prompts(prompts, tokenizer).to(self.device)
        ids = self._generate_ids(
            batch["input_ids"],
            generation_config,
            tokenizer,
            alpha,
            return_trace,
            {"attention_mask": batch["attention_mask"], **_sampling(kwargs, generation_config)},
        )
        output, trace = ids if return_trace else (ids, None)
        new = getattr(output, "sequences", output)[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        result = texts if several or len(texts) > 1 else texts[0]
        return result if trace is None else Traced(result, trace)

    def _generate_ids(
        self: "AlignedModel",  # type: ignore[misc]
        input_ids: Tensor | None,
        generation_config: GenerationConfig | None,
        tokenizer: PreTrainedTokenizerBase | None,
        alpha: Alpha,
        return_trace: bool,
        kwargs: dict[str, Any],
    ) -> Any:
        if _setting("cache_implementation", kwargs, generation_config, self.generation_config) == "paged":
            raise DualHeadError(NOT_PAGED)
        embeds = kwargs.get("inputs_embeds")
        _require_shapes(input_ids, embeds, self.backbone.config.get_text_config(decoder=True).vocab_size)
        given = input_ids if input_ids is not None else embeds
        rows = 1 if given is None else given.shape[0]
        if (guides := kwargs.pop("guides", None)) is not None:  # handed on by a custom_generate, as to forward
            strengths = strengths_of(torch.as_tensor(alpha), rows).expand(rows, -1)
        else:
            guides, strengths = self.resolve_alpha(alpha, rows, origin=0 if given is None else given.shape[1])
        strengths = strengths.to(self.device)
        if given is not None:
            kwargs = _within_context(self, given.shape[1], generation_config, kwargs)
        if tokenizer is not None:
            kwargs = {**kwargs, "tokenizer": tokenizer}
        with requesting(self, guides, strengths), _watched(kwargs) as kwargs:
            output = super().generate(  # type: ignore[misc]
                input_ids, generation_config, alpha=strengths, guides=guides, **kwargs
            )
        if not return_trace:
            return output
        if input_ids is None:
            raise DualHeadError("return_trace needs token ids or text, not inputs_embeds.")
        sequences = getattr(output, "sequences", output)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        ends, pad = (
            _setting(name, kwargs, generation_config, self.generation_config)
            for name in ("eos_token_id", "pad_token_id")
        )
        trace = trace_sequences(self, sequences, mask, alpha=(guides, strengths), eos_token_id=ends, pad_token_id=pad)
        return Traced(output, trace)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what `generate_batch` and transformers' continuous batching begin with."""
        del args, kwargs
        raise DualHeadError(NOT_PAGED)


def conversation_of(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool = True, system: str | None = None
) -> Prompt:
    """What a prompt asks: a text is a user's message where the tokenizer has a chat template, else a text to continue.

    chat_template: False continues every text as it is. system: a system message before it, which makes any text a
    message. Errors: a system message beside another one, or beside chat_template=False.
    """
    if isinstance(prompt, str):
        if system is not None and not chat_template:
            raise DualHeadError("A system prompt goes before messages, and a raw prompt is no message. Leave one out.")
        if system is None and not (chat_template and tokenizer.chat_template):
            return prompt
        if spelled := special_tokens_in(prompt, tokenizer):
            logger.warning(
                "The prompt spells %s. In a message that is text. To continue a text that is in the chat template's "
                "form already, use chat_template=False (--raw).",
                ", ".join(spelled),
            )
        prompt = [{"role": "user", "content": prompt}]
    if system is None:
        return prompt
    if any(message["role"] == "system" for message in prompt):
        raise DualHeadError("The conversation has a system message already. Leave out the other one (--system).")
    return [{"role": "system", "content": system}, *prompt]


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Write prompts as training does (a text as it is), padded on the left: input_ids and attention_mask [B, T].

    Errors: an empty prompt, one without tokens, a conversation that the chat template refuses.
    """
    rows = []
    for prompt, written in zip(prompts, write([(prompt, ()) for prompt in prompts], tokenizer), strict=True):
        contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        if not any(content.strip() for content in contents):
            raise DualHeadError("The prompt is empty. Give at least one word.")
        if isinstance(written, Dropped):
            raise DualHeadError(f"The prompt cannot be written: {written}. Change its messages or the template.")
        if not written.prompt:
            raise DualHeadError("A prompt has no tokens under this tokenizer. Give at least one word it knows.")
        rows.append(written.prompt)
    longest = max(map(len, rows))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked, so any id will do
    input_ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return BatchEncoding({"input_ids": input_ids, "attention_mask": mask})


def _is_batch(inputs: Any) -> bool:
    """Whether these are several prompts rather than one. Errors: none at all, or what is no prompt."""
    if isinstance(inputs, str):
        return False
    if isinstance(inputs, Mapping):
        raise DualHeadError("A mapping is no prompt. Give a tokenizer's output as generate(**batch).")
    if not isinstance(inputs, Sized):
        raise DualHeadError(_PROMPTS)
    if not len(inputs):
        raise DualHeadError("There are no prompts. Give at least one.")
    several = not isinstance(inputs[0], Mapping)
    for prompt in inputs if several else [inputs]:
        messages = isinstance(prompt, (list, tuple)) and all(isinstance(x, Mapping) and "role" in x for x in prompt)
        if not (messages or isinstance(prompt, str)):
            raise DualHeadError(_PROMPTS)
    return several


_PROMPTS = (
    "Prompts are text, conversations (lists of messages with a role), or token ids as a tensor [B, T]. "
    "For lists of ids, give torch.tensor(ids), padded on the left to one length."
)


def _require_shapes(input_ids: Tensor | None, embeds: Tensor | None, vocabulary: int) -> None:
    """Refuse ids that are not whole numbers [B, T] below `vocabulary`, embeddings that are not [B, T, d], and none."""
    if input_ids is not None and (input_ids.dim() != 2 or input_ids.is_floating_point()):
        raise DualHeadError(
            f"Token ids are whole numbers in a tensor [B, T], not {input_ids.dtype} {tuple(input_ids.shape)}. "
            "For the ids [T] of one prompt, give ids[None]."
        )
    if embeds is not None and embeds.dim() != 3:
        raise DualHeadError(f"inputs_embeds are [B, T, d], not {tuple(embeds.shape)}. For one prompt, give x[None].")
    for tensor in (input_ids, embeds):
        if tensor is not None and not tensor.numel():
            raise DualHeadError(f"There is no token in a tensor of shape {tuple(tensor.shape)}. Give at least one.")
    if input_ids is not None and not (input_ids.min() >= 0 and input_ids.max() < vocabulary):
        raise DualHeadError(
            f"Token ids are from 0 to {vocabulary - 1} here, and these reach from {input_ids.min()} to "
            f"{input_ids.max()}. Encode with the tokenizer of the backbone."
        )


class _Finite(LogitsProcessor):
    """Notices logits that are NaN or infinite, without waiting for the device; changes none."""

    def __init__(self) -> None:
        self.lost: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        lost = ~scores.amax(-1).isfinite().all()  # a maximum of what holds NaN is NaN
        self.lost = lost if self.lost is None else self.lost | lost
        return scores


@contextmanager
def _watched(kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments of transformers' generate under which logits that are no numbers are told of.

    Errors: tokens are to be sampled from them; settings that transformers refuses.
    """
    watch = _Finite()
    processors = LogitsProcessorList([watch, *(kwargs.get("logits_processor") or ())])
    try:
        yield {**kwargs, "logits_processor": processors}
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise DualHeadError(
            f"The model gives logits of NaN or infinity, and none can be sampled. Raise a tiny temperature. {_LOWER}"
        ) from error
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("transformers.generation"):
            raise
        raise DualHeadError(f"Cannot generate so: {reason(error)} Change the setting that is named.") from error
    if watch.lost is not None and watch.lost:
        logger.warning("The model gave logits of NaN or infinity, so this text means nothing. %s", _LOWER)


_LOWER = "Lower alpha, or load it with dtype='float32'."


def _sampling(kwargs: dict[str, Any], generation_config: GenerationConfig | None) -> dict[str, Any]:
    """Let a temperature mean what people mean by it: sample, or be greedy at 0."""
    kwargs = dict(kwargs)
    if generation_config is None and "max_length" not in kwargs:
        kwargs.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    temperature = kwargs.get("temperature")
    if temperature == 0:
        return {**kwargs, "temperature": None, "do_sample": False}
    if temperature is not None:
        kwargs.setdefault("do_sample", True)
    return kwargs


def _within_context(
    model: "AlignedModel", length: int, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    context = context_length(model.backbone.config)
    if context is None:
        return kwargs
    if length >= context:
        raise DualHeadError(
            f"The prompt has {length} tokens and the backbone's context is {context}. "
            f"Shorten the prompt to at most {context - 1} tokens."
        )
    for name, room in (("max_new_tokens", context - length), ("max_length", context)):
        wanted = _setting(name, kwargs, generation_config, model.generation_config)
        if wanted is not None:
            if wanted > room:
                logger.warning("%s reduced from %d to %d to stay within the context.", name, wanted, room)
                return {**kwargs, name: room}
            return kwargs
    return {**kwargs, "max_new_tokens": min(TRANSFORMERS_NEW_TOKENS, context - length)}


def _setting(name: str, kwargs: dict[str, Any], *configs: GenerationConfig | None) -> Any:
    """Look a generation setting up where transformers does: arguments, the call's config, the model's own."""
    found = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in found if value is not None), None)
