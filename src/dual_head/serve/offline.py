"""Many prompts at once without a server: the engine of serving, for as long as a list of prompts takes."""

import gc
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.data import Prompt
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.model import AlignedModel
from dual_head.model.alpha import Alpha
from dual_head.model.generate import DEFAULT_NEW_TOKENS, conversation_of, prompt_ids
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Piece, Sampling
from dual_head.serve.versions import require_tested_transformers

logger = logging.getLogger(__name__)
FEW = 16  # prompts, of which each gets a row

# Settings that change no greedy token.
OF_SAMPLING = {"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
OF_CALLERS = {"do_sample", "temperature", "top_k"}  # whoever samples gives these
OF_ENGINE = {"top_p", "min_p", "repetition_penalty"}  # with the same meaning there
THROUGHPUT = EngineSettings(max_batch_tokens=512, memory_share=0.5)  # where nobody waits for a first token
OF_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens"}
OF_OUTPUTS = {"use_cache", "output_attentions", "output_hidden_states", "transformers_version", "_from_model_config"}


def is_faster(model: Any, prompts: int, **options: Any) -> bool:
    """Whether a running batch is faster than `generate` for so many prompts, and gives the same tokens.

    options: of `generate`. It was measured on a processor: several prompts, decoded greedily, with guides that run no
    model of their own, which `generate` decodes together with the backbone.
    """
    settings = model.generation_config.to_diff_dict() | options
    draws = settings.get("do_sample") if options.get("temperature") is None else options["temperature"] > 0
    if draws or set(settings) - OF_SAMPLING - OF_TOKENS - OF_OUTPUTS:
        return False
    if prompts < 2 or model.device.type != "cpu" or not isinstance(model, AlignedModel):
        return False
    if any(model.guide(name).extra_forwards for name in model.config.guides or {}):
        return False
    return is_servable(model)


def is_servable(model: AlignedModel) -> bool:
    """Whether a running batch can hold a model and its guides."""
    try:
        require_tested_transformers()
        from dual_head.serve.paged import PagedModel

        PagedModel(model, lambda step: step.logits)
    except DualHeadError:
        return False
    return True


def sampling_in_a_batch(model: AlignedModel) -> dict[str, float] | None:
    """What a model's own settings add to temperature and top_k, where a running batch samples as `generate` does.

    None where it does not: on another device than a processor, for which it was not timed, for a model that cannot be
    served, and for settings that the engine does not have.
    """
    settings = model.generation_config.to_diff_dict()
    if set(settings) - OF_CALLERS - OF_ENGINE - OF_TOKENS - OF_OUTPUTS:
        return None
    if model.device.type != "cpu" or not is_servable(model):
        return None
    return {name: settings[name] for name in OF_ENGINE & set(settings) if settings[name] is not None}


def generate_batch(model: AlignedModel, prompts: Sequence[Prompt | Sequence[int]], **options: Any) -> list[Piece]:
    """See `AlignedModel.generate_batch`."""
    return list(generate_in_order(model, prompts, **options))


def generate_in_order(
    model: AlignedModel,
    prompts: Sequence[Prompt | Sequence[int]],
    *,
    alpha: Alpha | Sequence[Alpha] = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: bool = True,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    stop: str | Sequence[str] = (),
    settings: EngineSettings | None = None,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> Iterator[Piece]:
    """The pieces of `AlignedModel.generate_batch`, each as soon as it and those before it have ended.

    seed: of the first prompt, the next ones having one more each; or one per prompt.
    """
    from dual_head.serve.engine import Engine  # refuses a transformers that was not tested

    names = [field.name for field in fields(Sampling)]
    for name in sampling:
        if name not in names:
            raise DualHeadError(f"generate_batch has no option '{name}'.{did_you_mean(name, names)}")
    _require_several(prompts)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    tokenizer = tokenizer or model.own_tokenizer()
    encoded = [_ids(prompt, tokenizer, chat_template) for prompt in prompts]
    if not encoded:
        return
    with _unsearched():
        engine = Engine(model, tokenizer, _fitting(settings or EngineSettings(), encoded, max_new_tokens))
        seeds = _seeds(sampling.pop("seed", None), len(encoded))
        chosen = Sampling(**{"temperature": 0.0, **sampling})
        requests = []
        for i, ids in enumerate(encoded):
            room = max(1, engine.context_length - len(ids))
            if max_new_tokens > room:
                logger.warning("max_new_tokens reduced from %d to %d to stay within the context.", max_new_tokens, room)
            strengths = _strengths(model, alpha, i, len(encoded))
            requests.append(
                GenerationRequest(ids, min(max_new_tokens, room), strengths, replace(chosen, seed=seeds[i]), stop)
            )
        ended: dict[int, Piece] = {}
        following = 0
        with engine:
            for count, (i, piece) in enumerate(engine.as_they_end(requests), 1):
                ended[i] = piece
                if progress:
                    progress(count)
                while following in ended:
                    yield ended.pop(following)
                    following += 1


@contextmanager
def _unsearched() -> Iterator[None]:
    """Keep what there is out of searches for garbage, of which transformers makes two when a batch ends.

    A process has 400,000 objects of its libraries, among which they took longer than a short batch.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # else the caller's process keeps its objects out itself
            gc.unfreeze()


def _fitting(settings: EngineSettings, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> EngineSettings:
    """The settings, with pages for what there is, and not for a server, where they do not say otherwise."""
    longest = max(2, max(map(len, prompts)) + max_new_tokens)
    few = len(prompts) if len(prompts) < FEW else None
    rows = settings.max_rows and min(settings.max_rows, len(prompts))
    return replace(settings, context_length=settings.context_length or longest, max_rows=rows or few)


def _require_several(prompts: Any) -> None:
    """Refuse what is one prompt, whose characters, messages or tokens would be taken for prompts; and padded rows."""
    one = isinstance(prompts, (str, Mapping)) or any(isinstance(prompt, (int, Mapping)) for prompt in prompts)
    if one or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        raise DualHeadError("generate_batch takes a list of prompts, and this is one prompt. Give [prompt].")
    if isinstance(prompts, Tensor):
        raise DualHeadError("generate_batch takes no padded tensor. Give the token ids of each prompt as a list.")


def _ids(prompt: Prompt | Sequence[int], tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[int]:
    """Token ids as they are; text and conversations as `generate` writes them."""
    if not isinstance(prompt, str) and len(prompt) and not isinstance(prompt[0], Mapping):
        return [int(token) for token in prompt]  # pyright: ignore[reportArgumentType] - of a list or a tensor
    conversation: Any = conversation_of(prompt, tokenizer, chat_template=chat_template)  # pyright: ignore[reportArgumentType]
    return prompt_ids([conversation], tokenizer)[0]


def _strengths(model: AlignedModel, alpha: Any, i: int, rows: int) -> dict[str, Any]:
    """What alpha means for prompt i: {guide: number or schedule}."""
    of_prompt = _entry(alpha, i, rows)
    if of_prompt is None:
        return dict(model.config.alpha or {})
    if isinstance(of_prompt, Mapping):
        return {name: _entry(value, i, rows) for name, value in of_prompt.items()}
    return dict.fromkeys(model.config.guides or {}, of_prompt)


def _seeds(seed: Any, rows: int) -> list[int | None]:
    """A seed a prompt, as plain numbers."""
    if seed is None:
        return [None] * rows
    try:
        first = operator.index(seed)
    except TypeError:
        seeds = list(seed)
        return [operator.index(_entry(seeds, i, rows, "seed")) for i in range(rows)]
    return [first + i for i in range(rows)]


def _entry(value: Any, i: int, rows: int, name: str = "alpha") -> Any:
    """Entry i of one value a prompt; anything else as it is."""
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0):  # ndim: of a tensor, or of numpy's
        if len(value) != rows:
            raise DualHeadError(f"{name} has {len(value)} values for {rows} prompts. Give one, or one per prompt.")
        value = value[i]
    return value.tolist() if hasattr(value, "tolist") else value
