"""Sampled replies of a model to prompts, many rows at a time, in a way that can be taken up again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.data import Cut, Prompt
from dual_head.model.aligned import AlignedModel
from dual_head.model.generate import encode_prompts, end_tokens, prompt_ids
from dual_head.serve.offline import THROUGHPUT, generate_in_order, sampling_in_a_batch


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


def reply_lengths(new: Tensor, ends: Sequence[int]) -> Tensor:
    """Tokens of each reply [R, T] up to its first end token, which counts: [5 e . .] has 2, [5 6 7 8] has 4."""
    ended = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device)).long()
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
    ids = prompt_ids(prompts, tokenizer)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    step = max(1, rows // count)
    groups = [order[start : start + step] for start in range(0, len(order), step)]  # prompts of like lengths
    settings = sampling_in_a_batch(model)
    if settings is None:
        numbered = {seed * len(order) + g * step: group for g, group in enumerate(groups)}
        batches = {number: group for number, group in numbered.items() if not all(i in done for i in group)}
        texts = _in_padded_batches(model, tokenizer, prompts, count, batches, rows, sampling)
    else:
        # First a reply to each prompt of a group, then another, when pages hold the prompts.
        places = [(i, copy) for group in groups for copy in range(count) for i in group if i not in done]
        seeds = [(seed * len(ids) + i) * count + copy for i, copy in places]
        sampling |= {**settings, "seed": seeds, "settings": replace(THROUGHPUT, max_rows=rows)}
        texts = _in_a_running_batch(model, tokenizer, [(i, ids[i]) for i, _ in places], sampling)
    replies: dict[int, list[str]] = {}
    for i, text in texts:
        replies.setdefault(i, []).append(text)
        if len(replies[i]) == count:
            whole = replies.pop(i)
            if i not in done:  # a padded batch samples all of its prompts again
                yield i, whole


def _in_a_running_batch(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, list[int]]],
    options: dict[str, Any],
) -> Iterator[tuple[int, str]]:
    """(number, text) for each (number, token ids); a reply that ends makes room for the next."""
    ends = end_tokens(model)
    pieces = generate_in_order(model, [ids for _, ids in prompts], tokenizer=tokenizer, **options)
    for (i, _), piece in zip(prompts, pieces, strict=True):
        ended = piece.finish_reason == "stop"
        yield i, piece.text if ended else reply_text([token.id for token in piece.tokens], tokenizer, ends)


def _in_padded_batches(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    count: int,
    batches: Mapping[int, Sequence[int]],
    rows: int,
    options: dict[str, Any],
) -> Iterator[tuple[int, str]]:
    """(index, text), `count` times for each prompt of {seed of a batch: indices of its prompts}, `rows` at a time."""
    ends = end_tokens(model)
    for seed, group in batches.items():
        set_seed(seed % 2**32)  # numpy takes no more
        copies = [i for i in group for _ in range(count)]
        for start in range(0, len(copies), rows):
            part = copies[start : start + rows]
            _, _, new = generate_replies(model, tokenizer, [prompts[i] for i in part], do_sample=True, **options)
            yield from zip(part, (reply_text(row, tokenizer, ends) for row in new.tolist()), strict=True)


def reply_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> str:
    """The text of a reply's tokens up to its first end; without an end, a `Cut`."""
    length = next((i for i, token in enumerate(ids) if token in ends), None)
    text: Any = tokenizer.decode(list(ids[:length]), skip_special_tokens=True)
    return Cut(text) if length is None else text
