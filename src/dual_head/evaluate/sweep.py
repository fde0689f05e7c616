"""What each strength does to the replies: divergence, length, repetition and rewards over alpha.

All strengths of one prompt are generated in one batch, after one pass over the prompt that they share. One more pass
over the finished sequences measures them against the backbone. Replies do not depend on where a sweep was stopped and
resumed.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from dual_head.data import Cut
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.decode import pad_token, reply_text
from dual_head.evaluate.rewards import Reward, score_all
from dual_head.evaluate.text_metrics import distinct_n, diversity
from dual_head.evaluate.types import Decoding
from dual_head.model.generate import DEFAULT_NEW_TOKENS, Prompt, conversation_of, encode_prompts, end_tokens
from dual_head.model.score import reply_scalars
from dual_head.stats import bootstrap_mean

if TYPE_CHECKING:
    from dual_head.model.aligned import AlignedModel

METRICS = ("kl", "kl_per_token", "moved", "tokens", "distinct_1", "distinct_2", "distinct_3", "diversity")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One reply at one strength.

    index: which prompt, from 0; sample: which of its replies; alpha: the strength swept; alphas: that of
    every guide; text: the reply as it continues the prompt; tokens: its length, the end-of-sequence token
    included; kl: sum_t KL(policy || backbone) in nats, and per token; moved: mean share of probability that
    moved per token (total variation); distinct_n and diversity: of the reply's token ids, see `text_metrics`.
    """

    index: int
    prompt: Prompt
    sample: int
    alpha: float
    alphas: dict[str, float]
    text: str
    tokens: int
    kl: float
    kl_per_token: float
    moved: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    diversity: float
    rewards: dict[str, float]


def sweep(
    model: "AlignedModel",
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    alphas: Sequence[float],
    *,
    guide: str | None = None,
    alpha: float | Mapping[str, float] | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    rewards: Mapping[str, Reward] | None = None,
    chat_template: bool = True,
    start: int = 0,
    on_prompt: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Reply to every prompt at every strength, and measure each reply: rows by prompt, strength, sample.

    alphas: the strengths; of all guides together, or of `guide` while the others keep `alpha` (as
    `resolve_alpha` takes it; None for their defaults). temperature: 0 is greedy; above it, `samples` replies
    are drawn from the whole policy, reproducibly by `seed`. rewards: {name: (prompt, reply) -> number}.
    chat_template: a text is a user's message where the tokenizer has a chat template; False continues it as it is.
    start: how many prompts were done before; on_prompt: is given each prompt's rows as soon as there are any.
    All is checked before anything is generated. Errors: no prompts; alphas that are no numbers, or equal; an
    unknown guide; a prompt longer than the context; a reward that fails or gives no number.
    """
    strengths = _swept_strengths(model, alphas, guide=guide, alpha=alpha)
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature)
    options = _generate_options(model, tokenizer, decoding, samples)
    model.require_same_tokenizer(tokenizer)
    prompts = [conversation_of(prompt, tokenizer, chat_template=chat_template) for prompt in prompts]
    prompt_ids = _prompt_ids(model, tokenizer, prompts)
    labels = [
        {"sample": sample, "alpha": float(strength), "alphas": {name: row[i] for name, row in strengths.items()}}
        for i, strength in enumerate(alphas)
        for sample in range(samples)
    ]
    per_row = {name: [value for value in values for _ in range(samples)] for name, values in strengths.items()}
    rows: list[Row] = []
    for index in range(start, len(prompts)):
        if temperature:
            torch.manual_seed(seed + index)  # by prompt, so that a resumed sweep draws what an uninterrupted one does
        ids, prompt = prompt_ids[index].to(model.device), prompts[index]
        sequences = shared_prompt_replies(model, ids, per_row, **options)
        replies = _figures(model, tokenizer, sequences, ids.shape[1], per_row, message=not isinstance(prompt, str))
        pairs = [(prompt, reply["text"]) for reply in replies]
        scores = {name: score_all(name, reward, pairs) for name, reward in (rewards or {}).items()}
        prompt_rows = [
            Row(index=index, prompt=prompt, rewards={name: row[i] for name, row in scores.items()}, **label, **reply)
            for i, (label, reply) in enumerate(zip(labels, replies, strict=True))
        ]
        rows += prompt_rows
        if on_prompt is not None:
            on_prompt(prompt_rows)
    return rows


def _swept_strengths(
    model: "AlignedModel",
    alphas: Sequence[float],
    *,
    guide: str | None = None,
    alpha: float | Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Strength of every guide at each of the swept `alphas`: {name: [len(alphas)]}; options as `sweep` has them."""
    if not len(alphas):
        raise DualHeadError("There are no strengths to sweep. Give at least one, such as 0 and 1.")
    if not all(isinstance(a, (int, float)) and math.isfinite(a) for a in alphas):
        raise DualHeadError(f"The strengths to sweep are finite numbers, not {list(alphas)}.")
    if len(set(alphas)) < len(alphas):
        raise DualHeadError(f"A strength is there twice in {list(alphas)}. Give each once.")
    defaults, values = model.config.alpha or {}, [float(a) for a in alphas]
    if not defaults:
        raise DualHeadError("This model has no guide whose strength could be swept. Attach one.")
    if guide is None:
        if alpha is not None:
            raise DualHeadError("alpha is for the guides that are not swept. Say which guide is, with guide (--guide).")
        strengths = dict.fromkeys(defaults, values)
    else:
        if guide not in defaults:
            raise DualHeadError(f"No guide is named '{guide}'.{did_you_mean(guide, defaults)}")
        if isinstance(alpha, Mapping) and guide in alpha:
            raise DualHeadError(f"'{guide}' is the guide that is swept. Leave it out of alpha (--alpha).")
        fixed = dict(defaults) if alpha is None else alpha
        fixed = fixed if isinstance(fixed, Mapping) else dict.fromkeys(defaults, fixed)
        unknown = {name: value for name, value in fixed.items() if name not in defaults}  # refused below
        constant = {name: [fixed.get(name, 0.0)] * len(values) for name in defaults}
        strengths = {**constant, **unknown, guide: values}
    model.resolve_alpha(strengths, len(values))  # refuses what generation would
    return strengths


def shared_prompt_replies(
    model: "AlignedModel", prompt: Tensor, strengths: Mapping[str, Sequence[float]], **decoding: Any
) -> Tensor:
    """Generate one reply per row of strengths {name: [R]} to one prompt [1, P]: sequences [R, P + new].

    The prompt goes through backbone and guides once, whatever R is, unless a guide steers layers: what it keeps of a
    prompt is of one strength. decoding: arguments of `generate`.
    """
    # [p p p | p] once, then a row of the cache for each strength, which begins with the last p: [p | r r r]
    copies = len(next(iter(strengths.values())))
    acting, _ = model.resolve_alpha(strengths, copies)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if prompt.shape[1] > 1 and not model.guides.steer_layers(acting.names):
        with torch.no_grad():
            # The last token stays for `generate`, which needs logits to begin with.
            model.encode(prompt[:, :-1], past_key_values=cache, guides=acting.names, keep=slice(-1, None))
        cache.batch_repeat_interleave(copies)
    rows = prompt.repeat(copies, 1)
    return model.generate(
        rows, attention_mask=torch.ones_like(rows), past_key_values=cache, alpha=dict(strengths), **decoding
    )


def summarise(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Mean and 95% interval of every figure at each strength, strengths ascending.

    The replies to one prompt are averaged first and prompts resampled, since prompts are what is independent:
    [{"alpha", "alphas", "prompts", "replies", "empty", "metrics": {name: {"mean", "interval"}}, "rewards": {...}}].
    """
    by_alpha: dict[float, list[Row]] = {}
    for row in rows:
        by_alpha.setdefault(row.alpha, []).append(row)
    return [
        {
            "alpha": alpha,
            "alphas": group[0].alphas,
            "prompts": len({row.index for row in group}),
            "replies": len(group),
            "empty": sum(not row.text.strip() for row in group),
            "metrics": {name: _mean([(row.index, getattr(row, name)) for row in group]) for name in METRICS},
            "rewards": {name: _mean([(row.index, row.rewards[name]) for row in group]) for name in group[0].rewards},
        }
        for alpha, group in sorted(by_alpha.items())
    ]


def _mean(values: Iterable[tuple[int, float]]) -> dict[str, Any]:
    by_prompt: dict[int, list[float]] = {}
    for index, value in values:
        by_prompt.setdefault(index, []).append(value)
    means = list(map(statistics.fmean, by_prompt.values()))
    return {"mean": statistics.fmean(means), "interval": list(bootstrap_mean(means))}


def _generate_options(
    model: "AlignedModel", tokenizer: PreTrainedTokenizerBase, decoding: Decoding, samples: int
) -> dict[str, Any]:
    if samples < 1:
        raise DualHeadError(f"samples must be at least 1, not {samples}.")
    if samples > 1 and not decoding.temperature:
        raise DualHeadError("Greedy replies are all the same. Set temperature (--temperature 1), or draw one sample.")
    options = {
        "max_new_tokens": decoding.max_new_tokens,
        "pad_token_id": pad_token(model.generation_config, tokenizer, end_tokens(model)),
        "num_beams": 1,
        "num_return_sequences": 1,
    }
    if not decoding.temperature:
        return {**options, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    # Sampled from the whole policy, of which the divergence is measured.
    return {**options, "do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}


def _prompt_ids(model: "AlignedModel", tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Token ids [1, P] of every prompt; all are checked before anything is generated."""
    if not len(prompts):
        raise DualHeadError("There are no prompts. Give at least one.")
    rows: list[Tensor] = [encode_prompts([prompt], tokenizer)["input_ids"] for prompt in prompts]  # pyright: ignore[reportAssignmentType]
    context = model.guides.context_length(model.guides)
    for number, ids in enumerate(rows, 1):
        if context is not None and ids.shape[1] >= context:
            raise DualHeadError(
                f"Prompt {number} has {ids.shape[1]} tokens and the backbone's context is {context}. "
                f"Shorten it to at most {context - 1} tokens, or leave it out."
            )
    return rows


def _figures(
    model: "AlignedModel",
    tokenizer: PreTrainedTokenizerBase,
    sequences: Tensor,
    width: int,
    strengths: Mapping[str, Sequence[float]],
    *,
    message: bool,
) -> list[dict[str, Any]]:
    """Text and figures of each reply in the sequences [R, P + new] of one prompt.

        [p p p | r r end pad]        width P; length 3, the end included; words r r

    message: replies answer a conversation, so that spaces around them mean nothing.
    """
    new, ends = sequences[:, width:], end_tokens(model)
    is_end = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device))
    finished = is_end.any(1)
    lengths = torch.where(finished, is_end.int().argmax(1) + 1, new.shape[1])
    mask = torch.ones_like(sequences[:, :width])
    scalars = reply_scalars(model, sequences, mask, alpha=dict(strengths), lengths=lengths, needs=("kl", "moved"))
    prompt, replies = sequences[0, :width].tolist(), []
    for row, length in enumerate(lengths.tolist()):
        reply = new[row, :length].tolist()
        words = [token for token in reply if token not in ends]
        text = reply_text(tokenizer, prompt, reply)
        text = text.strip() if message else text
        kl = max(scalars["kl"][row].item(), 0.0)  # rounding can pass below 0; as the second, NaN would become 0
        replies.append(
            {
                "text": text if finished[row] else Cut(text),
                "tokens": length,
                "kl": kl,
                "kl_per_token": kl / length,
                "moved": scalars["moved"][row].item() / length,
                **{f"distinct_{n}": distinct_n(words, n) for n in (1, 2, 3)},
                "diversity": diversity(words),
            }
        )
    return replies
