"""Sampled replies of a model to prompts, many rows at a time, in a way that can be taken up again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.data import Cut, Prompt
from dual_head.model.aligned import AlignedModel
from dual_head.model.generate import encode_prompts
from dual_head.serve.offline import SAMPLED, generate_in_order, sampling_in_a_batch


@torch.no_grad()
def generate_replies(
    model: AlignedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """One reply to each prompt, in one padded batch.

    Sequences [R, T], the prompts' mask [R, P], the new tokens [R, T - P]; options: of `AlignedModel.generate`.
    """
    batch = encode_prompts(prompts, tokenizer)
    ids, mask = (torch.as_tensor(batch[name]).to(model.device) for name in ("input_ids", "attention_mask"))
    sequences = model.generate(ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
    return sequences, mask, sequences[:, ids.shape[1] :]


def reply_lengths(new: Tensor, end: int) -> Tensor:
    """Tokens of each reply [R, T] up to its first end token, which counts: [5 e . .] has 2, [5 6 7 8] has 4."""
    ended = (new == end).long()
    return torch.where(ended.any(1), ended.argmax(1) + 1, new.shape[1])


def sample_replies(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    count: int = 4,
    alpha: float | Mapping[str, float] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    rows: int = 64,
    done: Collection[int] = (),
) -> Iterator[tuple[int, list[str]]]:
    """Yield (index of a prompt, `count` replies), those that reached the limit of tokens as `Cut`.

    At most `rows` replies are sampled at a time. What is in `done` is not sampled again, and the rest is what it would
    have been, up to rounding. Other settings, such as top_p, are the model's own.
    """
    sampling = {"alpha": alpha, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
    settings = sampling_in_a_batch(model)
    if settings is None:
        yield from _in_padded_batches(model, tokenizer, prompts, count, rows, seed, done, sampling)
    else:
        yield from _in_a_running_batch(model, tokenizer, prompts, count, rows, seed, done, sampling | settings)


def _in_a_running_batch(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    count: int,
    rows: int,
    seed: int,
    done: Collection[int],
    sampling: dict[str, Any],
) -> Iterator[tuple[int, list[str]]]:
    """A reply that ends makes room for the next; each has a seed of its own.

    Prompts of like lengths share a group of `rows` replies: first one to each, then more, when pages hold the prompts.
    """
    ids = [encode_prompts([prompt], tokenizer)["input_ids"][0].tolist() for prompt in prompts]
    waiting = sorted((i for i in range(len(ids)) if i not in done), key=lambda i: len(ids[i]))
    size = max(1, rows // count)
    groups = [waiting[start : start + size] for start in range(0, len(waiting), size)]
    places = [(i, copy) for group in groups for copy in range(count) for i in group]
    pieces = generate_in_order(
        model,
        [ids[i] for i, _ in places],
        tokenizer=tokenizer,
        seed=[(seed * len(ids) + i) * count + copy for i, copy in places],
        settings=replace(SAMPLED, max_rows=rows),
        **sampling,
    )
    texts: dict[int, list[str]] = {}
    for (i, _), piece in zip(places, pieces, strict=True):
        ended = piece.finish_reason == "stop"
        text = piece.text if ended else reply_text([token.id for token in piece.tokens], tokenizer)
        texts.setdefault(i, []).append(text)
        if len(texts[i]) == count:
            yield i, texts.pop(i)


@torch.no_grad()
def _in_padded_batches(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    count: int,
    rows: int,
    seed: int,
    done: Collection[int],
    sampling: dict[str, Any],
) -> Iterator[tuple[int, list[str]]]:
    """Prompts of like lengths share a batch, which has a seed of its own."""
    lengths = [encode_prompts([prompt], tokenizer)["input_ids"].shape[1] for prompt in prompts]  # pyright: ignore[reportAttributeAccessIssue]
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    step = max(1, rows // count)
    for start in range(0, len(order), step):
        indices = order[start : start + step]
        if all(i in done for i in indices):
            continue
        set_seed(seed * len(order) + start)
        copies = [prompts[i] for i in indices for _ in range(count)]
        _, _, new = generate_replies(model, tokenizer, copies, do_sample=True, **sampling)
        texts = [reply_text(row, tokenizer) for row in new.tolist()]
        for position, i in enumerate(indices):
            if i not in done:
                yield i, texts[position * count : (position + 1) * count]


def reply_text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a reply's tokens; without an end token, a `Cut`."""
    text: Any = tokenizer.decode(ids, skip_special_tokens=True)
    return text if tokenizer.eos_token_id in ids else Cut(text)
