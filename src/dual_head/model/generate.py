"""Text in and text out, a strength per request, and a trace of what guidance did.

Everything about decoding itself is transformers' own. This file adds alpha, plain-text prompts and the
length check; it knows no guide.
"""

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from dual_head.data import Cut, Dropped, Prompt
from dual_head.data.conversation import special_tokens_in, write
from dual_head.errors import DualHeadError
from dual_head.files.reading import reason
from dual_head.model.alpha import Alpha, Strengths, requesting, strengths_of
from dual_head.model.trace import Trace, trace_sequences
from dual_head.model.types import Aligned

logger = logging.getLogger(__name__)
DEFAULT_NEW_TOKENS = 128
NOT_PAGED = (
    "generate() has no paged cache, and transformers' own batching gives no request a strength. For many prompts at "
    "once use generate_batch() or dual-head serve; for generate(), the default cache or cache_implementation='static'."
)
TRANSFORMERS_NEW_TOKENS = 20  # transformers' default


class Traced(NamedTuple):
    """What `generate` returns without a trace, and what guidance did to every new token, one trace per row."""

    output: Any
    trace: list[Trace]


def generate_text(
    model: Aligned,
    inputs: Prompt | Sequence[Prompt],
    generation_config: GenerationConfig | None,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    chat_template: bool,
    return_trace: bool,
    alpha: Alpha,
    **options: Any,
) -> Any:
    """Text in, text out: one prompt or several, as `AlignedModel.generate` has them."""
    several = _is_batch(inputs)
    if model.guides.backbone.has_images(options):
        raise DualHeadError(
            "A text prompt has no place for images. Let the backbone's processor write both: "
            "generate(**processor(text=..., images=..., return_tensors='pt'))."
        )
    tokenizer = tokenizer or model.own_tokenizer()
    model.require_same_tokenizer(tokenizer)
    prompts: Sequence[Prompt] = inputs if several else [inputs]  # type: ignore[assignment, list-item]
    conversations = [conversation_of(prompt, tokenizer, chat_template=chat_template) for prompt in prompts]
    batch = encode_prompts(conversations, tokenizer).to(model.device)
    options = {"attention_mask": batch["attention_mask"], **_sampling(options, generation_config)}
    request = {"tokenizer": tokenizer, "alpha": alpha, "return_trace": return_trace}
    result = generate_ids(model, batch["input_ids"], generation_config, **request, **options)
    output, trace = result if return_trace else (result, None)
    replies = getattr(output, "sequences", output)[:, batch["input_ids"].shape[1] :].tolist()
    ends = end_tokens(model, generation_config, **options)
    texts = [
        Cut(text) if set(ids).isdisjoint(ends) else text
        for ids, text in zip(replies, tokenizer.batch_decode(replies, skip_special_tokens=True), strict=True)
    ]
    text = texts if several or len(texts) > 1 else texts[0]
    return text if trace is None else Traced(text, trace)


def generate_ids(
    model: Aligned,
    input_ids: Tensor | None,
    generation_config: GenerationConfig | None,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    alpha: Alpha,
    return_trace: bool,
    guides: Strengths | None = None,
    **options: Any,
) -> Any:
    """Token ids [B, T] (or inputs_embeds) in, what transformers' `generate` returns out.

    guides: beside alpha as a tensor, as a `custom_generate` hands both on.
    """
    configs = (generation_config, model.generation_config)
    if _setting("cache_implementation", options, *configs) == "paged":
        raise DualHeadError(NOT_PAGED)
    if model.guides.backbone.has_images(options):
        _require_whole_prompt(return_trace, _setting("prefill_chunk_size", options, *configs))
    embeds = options.get("inputs_embeds")
    backbone_config = model.guides.backbone.config.get_text_config(decoder=True)
    _require_shapes(input_ids, embeds, backbone_config.vocab_size)
    prompt = input_ids if input_ids is not None else embeds
    rows, length = (1, 0) if prompt is None else prompt.shape[:2]
    if guides is None:
        guides, values = model.resolve_alpha(alpha, rows, origin=length)
    else:
        values = strengths_of(torch.as_tensor(alpha), rows).expand(rows, -1)
    values = values.to(model.device)
    if prompt is not None:
        options = _within_context(model, guides.names, length, generation_config, options)
    if tokenizer is not None:
        options["tokenizer"] = tokenizer
    with requesting(model, guides, values), _watched(options) as settings:
        generate: Any = GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
        output = generate(model, input_ids, generation_config, alpha=values, guides=guides, **settings)
    if not return_trace:
        return output
    if input_ids is None:
        raise DualHeadError("return_trace needs token ids or text, not inputs_embeds.")
    mask = options.get("attention_mask")
    trace = trace_sequences(
        model,
        getattr(output, "sequences", output),
        torch.ones_like(input_ids) if mask is None else mask,
        alpha=(guides, values),
        eos_token_id=_setting("eos_token_id", options, *configs),
        pad_token_id=_setting("pad_token_id", options, *configs),
    )
    return Traced(output, trace)


def conversation_of(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool = True, system: str | None = None
) -> Prompt:
    """A prompt as a conversation: text is a user's message where the tokenizer has a chat template, or is continued.

    chat_template: False continues every text as it is. system: a system message before it, which makes any text a
    message. Errors: a system message beside another one, or beside chat_template=False.
    """
    if isinstance(prompt, str):
        if system is not None and not chat_template:
            raise DualHeadError(
                "A system prompt goes before messages, and a raw prompt is not a message. Leave one out."
            )
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


def end_tokens(model: Any, generation_config: GenerationConfig | None = None, **options: Any) -> list[int]:
    """The tokens at which a reply of `generate` ends, called with these settings; [] where nothing names one."""
    ends: Any = _setting("eos_token_id", options, generation_config, model.generation_config)
    return [ends] if isinstance(ends, int) else list(ends or ())


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Token ids of prompts, padded on the left: input_ids and attention_mask [B, T]. Errors: see `prompt_ids`."""
    rows = prompt_ids(prompts, tokenizer)
    longest = max(map(len, rows))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked, so any id will do
    input_ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return BatchEncoding({"input_ids": input_ids, "attention_mask": mask})


def prompt_ids(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[list[int]]:
    """Write prompts as training does (a text as it is); tools: see `write`.

    Errors: an empty prompt, one without tokens, a conversation that the chat template refuses.
    """
    rows = []
    for prompt, example in zip(prompts, write([(prompt, ()) for prompt in prompts], tokenizer, tools), strict=True):
        contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        if not any(content.strip() for content in contents):
            raise DualHeadError("The prompt is empty. Give at least one word.")
        if isinstance(example, Dropped):
            raise DualHeadError(f"The prompt cannot be written: {example}. Change its messages or the template.")
        if not example.prompt:
            raise DualHeadError("A prompt has no tokens under this tokenizer. Give at least one word it knows.")
        rows.append(example.prompt)
    return rows


def _is_batch(inputs: Any) -> bool:
    """Whether these are several prompts rather than one. Errors: none at all, or something else than prompts."""
    if isinstance(inputs, str):
        return False
    if isinstance(inputs, Mapping):
        raise DualHeadError("A mapping is not a prompt. Give a tokenizer's output as generate(**batch).")
    if not hasattr(inputs, "__len__"):
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


def _require_whole_prompt(return_trace: bool, chunk: int | None) -> None:
    """Refuse what reads a prompt again without its images, or by parts that may cut one."""
    if return_trace:
        raise DualHeadError("return_trace reads the finished text again, without its images. Leave it out with images.")
    if chunk:
        raise DualHeadError("prefill_chunk_size may cut an image. Leave it out with images.")


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
    """Keeps the largest logit of every row and step, which shows NaN and infinity, and changes none.

    One operation a step, and no waiting for the device before the end.
    """

    def __init__(self) -> None:
        self.largest: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        self.largest.append(scores.amax(-1))  # a maximum of what holds NaN is NaN
        return scores

    def lost(self) -> bool:
        """Whether any was NaN or infinite."""
        return bool(self.largest) and not torch.cat(self.largest).isfinite().all()


@contextmanager
def _watched(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield options of transformers' generate under which logits of NaN or infinity are reported.

    Errors: sampling from such logits; settings that transformers refuses.
    """
    watch = _Finite()
    processors = LogitsProcessorList([watch, *(options.get("logits_processor") or ())])
    try:
        yield {**options, "logits_processor": processors}
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise DualHeadError(
            f"The model gives logits of NaN or infinity, which cannot be sampled. Raise a tiny temperature. {_LOWER}"
        ) from error
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("transformers.generation"):
            raise
        raise DualHeadError(f"Cannot generate like this: {reason(error)} Change the setting that is named.") from error
    if watch.lost():
        logger.warning("The model gave logits of NaN or infinity, so this text means nothing. %s", _LOWER)


_LOWER = "Lower alpha, or load it with dtype='float32'."
NOT_A_NUMBER = f"The model gives logits of NaN or infinity, so its texts and scores mean nothing. {_LOWER}"


def _sampling(options: dict[str, Any], generation_config: GenerationConfig | None) -> dict[str, Any]:
    """Let a temperature mean what people mean by it: sample, or be greedy at 0."""
    if generation_config is None and "max_length" not in options:
        options.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    temperature = options.get("temperature")
    if temperature == 0:
        return {**options, "temperature": None, "do_sample": False}
    if temperature is not None:
        options.setdefault("do_sample", True)
    return options


def _within_context(
    model: Aligned,
    names: Sequence[str],
    length: int,
    generation_config: GenerationConfig | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The options, with no more new tokens than the context holds beside these guides. Errors: a prompt fills it."""
    context = model.guides.context_length(names)
    if context is None:
        return options
    if length >= context:
        raise DualHeadError(
            f"The prompt has {length} tokens and the backbone's context is {context}{_beside(model, names)}. "
            f"Shorten the prompt to at most {context - 1} tokens."
        )
    for name, limit in (("max_new_tokens", context - length), ("max_length", context)):
        value = _setting(name, options, generation_config, model.generation_config)
        if value is not None:
            if value > limit:
                logger.warning("%s reduced from %d to %d to stay within the context.", name, value, limit)
                return {**options, name: limit}
            return options
    return {**options, "max_new_tokens": min(TRANSFORMERS_NEW_TOKENS, context - length)}


def _beside(model: Aligned, names: Sequence[str]) -> str:
    prompted = [name for name in names if model.guides[name].prompt_tokens]
    return f" beside the prompt of {' and '.join(map(repr, prompted))}" if prompted else ""


def _setting(name: str, options: dict[str, Any], *configs: GenerationConfig | None) -> Any:
    """Look a generation setting up where transformers does: options, the call's config, the model's own."""
    values = (options.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)
