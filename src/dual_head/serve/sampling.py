"""From guided logits to the next tokens, every row of a batch by its own settings: pure functions on tensors [n, V].

Rows that ask for nothing cost nothing: each step looks only at the rows that ask for it. The noise of a sample comes
from a hash of the row's seed, the position and the token, so a seed means the same text whatever else is in the batch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dual_head.errors import DualHeadError
from dual_head.serve.types import Sampling

NEVER = -math.inf
CANDIDATES = 512  # how many tokens are looked at first for a nucleus
WORD = 2**32


def require_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Refuse settings that no distribution has, each by its name."""
    limits: dict[str, tuple[float, float]] = {
        "temperature": (0, 100),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "top_k": (0, WORD),
        "frequency_penalty": (-100, 100),
        "presence_penalty": (-100, 100),
        "repetition_penalty": (1e-3, 1e3),
        "top_logprobs": (0, vocabulary),
    }
    for name, (low, high) in limits.items():
        value = getattr(sampling, name)
        if not low <= value <= high or (name == "top_p" and value == 0):
            above = "above" if name == "top_p" else "from"
            raise DualHeadError(f"{name} must be a number {above} {low:g} to {high:g}, not {value}.")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise DualHeadError(f"logit_bias names the token {token}, and ids are from 0 to {vocabulary - 1}.")
        if not math.isfinite(bias):
            raise DualHeadError(f"logit_bias of the token {token} must be finite, not {bias}.")


class LogitEdits:
    """Penalties and biases of one row, kept from step to step as tensors that a step reads at once.

    tokens [k]: every token of the reply once, and of the prompt where repetition is penalised; less [k]: what frequency
    and presence take from their logits; biased [b], biases [b]: of logit_bias.
    """

    def __init__(self, settings: Sampling, prompt_ids: Sequence[int]):
        self.settings = settings
        repetition = settings.repetition_penalty != 1
        self.penalises = repetition or settings.frequency_penalty != 0 or settings.presence_penalty != 0
        seen = dict.fromkeys(prompt_ids if repetition else ())
        self._places = {token: place for place, token in enumerate(seen)}
        self._counts = [0] * len(seen)
        self.tokens, self.less = torch.tensor([*seen], dtype=torch.long), torch.zeros(len(seen), dtype=torch.float32)
        self.biased = torch.tensor([*settings.logit_bias], dtype=torch.long)
        self.biases = torch.tensor([*settings.logit_bias.values()], dtype=torch.float32)

    def add(self, token: int) -> None:
        """Count a token that joins the reply."""
        if not self.penalises:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._counts):
            self._counts.append(0)
            self.tokens = torch.cat([self.tokens, self.tokens.new_tensor([token])])
            self.less = torch.cat([self.less, self.less.new_zeros(1)])
        self._counts[place] += 1
        self.less[place] = self.settings.frequency_penalty * self._counts[place] + self.settings.presence_penalty


def edits_of(settings: Sampling, prompt_ids: Sequence[int]) -> LogitEdits | None:
    """What the settings of a row change of its logits; None where they change nothing."""
    edits = LogitEdits(settings, prompt_ids)
    return edits if edits.penalises or settings.logit_bias else None


def edited(logits: Tensor, edits: Sequence[LogitEdits | None]) -> Tensor:
    """Logits [n, V] with penalties and biases; the very same tensor where no row has any yet.

    Repetition divides positive logits and multiplies negative ones, as transformers does; frequency and presence are
    OpenAI's.
    """
    asking = [(i, row) for i, row in enumerate(edits) if row is not None and len(row.tokens) + len(row.biased)]
    if not asking:
        return logits
    rows, parts = zip(*asking, strict=True)
    logits, device = logits.clone(), logits.device
    tokens, biased = [row.tokens for row in parts], [row.biased for row in parts]
    at = _each(rows, tokens).to(device), torch.cat(tokens).to(device)
    factor = _each([float(row.settings.repetition_penalty) for row in parts], tokens).to(logits)
    picked, less = logits[at], torch.cat([row.less for row in parts]).to(logits)
    logits[at] = torch.where(picked > 0, picked / factor, picked * factor) - less
    at = _each(rows, biased).to(device), torch.cat(biased).to(device)
    logits[at] += torch.cat([row.biases for row in parts]).to(logits)
    return logits


def _each(values: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Value i as often as part i has entries."""
    return torch.tensor(values).repeat_interleave(torch.tensor([len(part) for part in parts]))


def scores_of(logits: Tensor, settings: Sequence[Sampling], seeds: Sequence[int], positions: Tensor) -> Tensor:
    """Scores [n, V] whose largest entry is the next token: the logits where temperature is 0, a sample elsewhere.

    argmax(z / T - log E) with E exponential is a sample of softmax(z / T); top_k, top_p and min_p leave out tokens in
    this order, each on what the one before it left, as transformers does. positions [n]: of the rows' last tokens.
    """
    sampled = [i for i, s in enumerate(settings) if s.temperature > 0]
    if not sampled:
        return logits
    device = logits.device
    asking = [settings[i] for i in sampled]
    whole = len(sampled) == len(settings)
    at = torch.tensor(sampled, device=device)
    z = logits if whole else logits[at]
    # The largest at 0, so that a tiny temperature does not overflow.
    z = (z - z.amax(-1, keepdim=True)).div_(_column([s.temperature for s in asking], z))
    z = _where(z, [s.top_k > 0 for s in asking], lambda x, s: top_k(x, [k.top_k for k in s]), asking)
    z = _where(z, [s.top_p < 1 for s in asking], lambda x, s: top_p(x, [p.top_p for p in s]), asking)
    z = _where(z, [s.min_p > 0 for s in asking], lambda x, s: min_p(x, [p.min_p for p in s]), asking)
    z += gumbel([seeds[i] for i in sampled], positions if whole else positions[at], z.shape[-1])
    return z if whole else logits.index_copy(0, at, z)


def top_k(z: Tensor, k: Sequence[int]) -> Tensor:
    """The k_i largest of row i, and what equals the least of them."""
    count = [min(x, z.shape[-1]) for x in k]
    largest = z.topk(max(count), -1).values
    least = largest.gather(-1, torch.tensor(count, device=z.device)[:, None] - 1)
    return z.masked_fill(z < least, NEVER)


def top_p(z: Tensor, p: Sequence[float]) -> Tensor:
    """The fewest tokens of row i whose probabilities reach p_i, and what equals the least of them.

    The largest few are looked at first, and more only where they do not reach p: sorting a vocabulary takes longer
    than all else.
    """
    probabilities, mass, size = z.softmax(-1), _column(p, z), CANDIDATES
    while True:
        largest = probabilities.topk(min(size, z.shape[-1]), -1).values
        before = largest.cumsum(-1) - largest  # of the likelier ones
        if size >= z.shape[-1] or bool((before[:, -1:] >= mass).all()):
            break
        size *= 8
    last = (before < mass).sum(-1, keepdim=True).clamp_min(1) - 1
    return z.masked_fill(probabilities < largest.gather(-1, last), NEVER)


def min_p(z: Tensor, p: Sequence[float]) -> Tensor:
    """Tokens of row i at least p_i times as likely as the likeliest."""
    return z.masked_fill(z < z.amax(-1, keepdim=True) + _column(p, z).log(), NEVER)


def gumbel(seeds: Sequence[int], positions: Tensor, vocabulary: int) -> Tensor:
    """Noise [n, V], -log E with E exponential: a hash of seed, position and token id, the same wherever it is computed.

    int32 wraps, as the multiplications of a hash want it.
    """
    device = positions.device
    keys = [_mixed(seed) for seed in seeds]
    low, high = (
        torch.tensor([_signed(word) for word in words], dtype=torch.int32, device=device)[:, None]
        for words in ([key % WORD for key in keys], [key // WORD for key in keys])
    )
    place = positions.to(torch.int32)[:, None]
    key = _scrambled(_scrambled(place * 0x27D4EB2F ^ low) + high)  # [n, 1]
    h = _scrambled(torch.arange(vocabulary, dtype=torch.int32, device=device) * _signed(0x9E3779B1) ^ key)
    # Close to 0 a float has all its digits, so that unlikely tokens keep their chance. Close to 1 it has few: the
    # largest hashes would round to 1, of which the noise is minus infinity.
    uniform = h.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_max_(1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _scrambled(h: Tensor) -> Tensor:
    """Spread every bit of int32, a tensor of its own, over all of them (murmur3's last steps)."""
    # A shift of int32 drags the sign along.
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    h *= _signed(0x85EBCA6B)
    h ^= (h >> 13).bitwise_and_(0x7FFFF)
    h *= _signed(0xC2B2AE35)
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    return h


def _mixed(seed: int) -> int:
    """64 bits that differ in many places for seeds that differ in one (splitmix)."""
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _where(
    z: Tensor, asks: list[bool], change: Callable[[Tensor, list[Sampling]], Tensor], settings: list[Sampling]
) -> Tensor:
    """Change the rows that ask for it."""
    if not any(asks):
        return z
    if all(asks):
        return change(z, settings)
    at = torch.tensor([i for i, ask in enumerate(asks) if ask], device=z.device)
    return z.index_copy(0, at, change(z[at], [s for s, ask in zip(settings, asks, strict=True) if ask]))


def logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability in nats [n] of one token [n] a row."""
    # In half the time of logsumexp, which goes through the vocabulary once for each of its steps.
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def top_logprobs(logits: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """For each row its most likely tokens, most likely first: as many (id, log-probability) as it asks for."""
    pairs: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    asking = [i for i, count in enumerate(counts) if count]
    if asking:
        z = logits[torch.tensor(asking, device=logits.device)]
        best = z.log_softmax(-1).topk(max(counts), -1)
        for i, tokens, values in zip(asking, best.indices.tolist(), best.values.tolist(), strict=True):
            pairs[i] = tuple(zip(tokens, values, strict=True))[: counts[i]]
    return pairs
