"""Many prompts at once without a server: the engine of serving, for as long as a list of prompts takes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dual_head.data import Prompt
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.model import AlignedModel
from dual_head.model.alpha import Alpha
from dual_head.model.generate import DEFAULT_NEW_TOKENS, conversation_of, encode_prompts
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Piece, Sampling

logger = logging.getLogger(__name__)
FEW = 16  # prompts, of which each gets a row


def generate_batch(
    model: AlignedModel,
    prompts: Sequence[Prompt | Sequence[int]],
    *,
    alpha: Alpha | Sequence[Alpha] = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: bool = True,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    stop: Sequence[str] = (),
    settings: EngineSettings | None = None,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[Piece]:
    """See `AlignedModel.generate_batch`."""
    names = [field.name for field in fields(Sampling)]
    for name in sampling:
        if name not in names:
            raise DualHeadError(f"generate_batch has no option '{name}'.{did_you_mean(name, names)}")
    tokenizer = tokenizer or model.own_tokenizer()
    encoded = [_ids(prompt, tokenizer, chat_template) for prompt in prompts]
    if not encoded:
        return []
    # Pages for what there is, and not for a server.
    longest = max(map(len, encoded)) + max_new_tokens
    fitting = EngineSettings(context_length=max(2, longest), max_rows=len(encoded) if len(encoded) < FEW else None)
    engine = Engine(model, tokenizer, settings or fitting)
    chosen = Sampling(**{"temperature": 0.0, **sampling})
    requests = []
    for i, ids in enumerate(encoded):
        room = max(1, engine.context_length - len(ids))
        if max_new_tokens > room:
            logger.warning("max_new_tokens reduced from %d to %d to stay within the context.", max_new_tokens, room)
        seed = None if chosen.seed is None else chosen.seed + i
        strengths = _strengths(model, alpha, i, len(encoded))
        requests.append(
            GenerationRequest(ids, min(max_new_tokens, room), strengths, replace(chosen, seed=seed), tuple(stop))
        )
    with engine:
        return engine.generate(requests, progress=progress)


def _ids(prompt: Prompt | Sequence[int], tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[int]:
    """Token ids as they are; text and conversations as `generate` writes them."""
    if not isinstance(prompt, str) and len(prompt) and not isinstance(prompt[0], Mapping):
        return [int(token) for token in prompt]  # pyright: ignore[reportArgumentType] - of a list or a tensor
    conversation: Any = conversation_of(prompt, tokenizer, chat_template=chat_template)  # pyright: ignore[reportArgumentType]
    return encode_prompts([conversation], tokenizer)["input_ids"][0].tolist()


def _strengths(model: AlignedModel, alpha: Any, i: int, rows: int) -> dict[str, Any]:
    """What alpha means for prompt i: {guide: number or schedule}."""
    of_prompt = _entry(alpha, i, rows)
    if of_prompt is None:
        return dict(model.config.alpha or {})
    if isinstance(of_prompt, Mapping):
        return {name: _entry(value, i, rows) for name, value in of_prompt.items()}
    return dict.fromkeys(model.config.guides or {}, of_prompt)


def _entry(alpha: Any, i: int, rows: int) -> Any:
    """Entry i of one value a prompt; anything else as it is."""
    if not isinstance(alpha, (list, tuple, Tensor)):
        return alpha
    if len(alpha) != rows:
        raise DualHeadError(f"alpha has {len(alpha)} values for {rows} prompts. Give one, or one per prompt.")
    return alpha[i].item() if isinstance(alpha, Tensor) else alpha[i]
