"""From hidden states to the distributions somebody asks for: the one line of the architecture, at n tokens.

    z = lm_head(h + sum_k w_k edit_k) + sum_k w_k direction_k          w_k = alpha_k g_k

Generation, training, traces and sweeps all come through here, so that one vocabulary product serves where
one is enough: the backbone's own logits are computed only when they are asked for, or when no guide edits.
It knows guides as `Guide` has them; which ones act and how strongly is decided above.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dual_head.backbone import Decoder
from dual_head.errors import DualHeadError
from dual_head.fusion import Term, fuse
from dual_head.guides import Guide, States
from dual_head.transfer import Transfer


@dataclass(frozen=True)
class Voice:
    """One acting guide at n tokens: states [n, *], and alpha, a number or [n, 1] (or [B, T, 1])."""

    guide: Guide
    states: States
    alpha: Tensor | float
    transfer: Transfer | None = None

    @cached_property
    def gate(self) -> Tensor | float:
        """The guide's gate, [n, 1], or the constant it is."""
        gate = self.guide.gate(self.states)
        return gate.unsqueeze(-1) if isinstance(gate, Tensor) else gate

    @property
    def weight(self) -> Tensor | float:
        """alpha * gate, [n, 1]."""
        return self.alpha * self.gate

    def direction(self, base: Tensor | None) -> Tensor:
        """The guide's direction over the backbone's vocabulary, [n, V]."""
        direction = self.guide.direction(self.states, base)
        return direction if self.transfer is None else self.transfer.direction(direction)


def distributions(
    backbone: Decoder,
    voices: Sequence[Voice],
    hidden: Tensor,
    wanted: Collection[str] = ("policy",),
    *,
    fusion: str = "logits",
    upcast: bool = False,
) -> dict[str, Tensor]:
    """Compute logits [n, V] of the wanted distributions at hidden states [n, d].

    wanted: "base", the backbone's own; "policy", what is decoded from; of a single voice, "reward", the
    distribution the guide itself stands for, and "delta" = gate * direction (or gate * edit, [n, d]).
    upcast: fuse in fp32 whatever the weights' dtype.
    """
    logits: Callable[[Tensor], Tensor] = (lambda h: backbone.logits(h).float()) if upcast else backbone.logits
    editing = [voice for voice in voices if voice.guide.space == "hidden"]
    mixing = fusion == "probabilities"
    needs_base = (
        "base" in wanted
        or not editing
        or (mixing and "policy" in wanted)
        or any(voice.guide.reads_base for voice in voices)
    )
    base = logits(hidden) if needs_base else None
    said: dict[int, Tensor] = {}

    def own(i: int) -> Tensor:
        """The direction of a guide that speaks in the vocabulary, the logits of one that edits alone; once each."""
        if i not in said:
            voice = voices[i]
            if voice.guide.space == "hidden":
                said[i] = logits((hidden + voice.guide.edit(voice.states)).to(hidden.dtype))
            else:
                said[i] = voice.direction(base)
        return said[i]

    def reward(i: int) -> Tensor:
        guide = voices[i].guide
        if guide.space == "hidden":
            return own(i)
        return guide.reward(own(i), logits(hidden) if base is None else base)

    out: dict[str, Tensor] = {}
    if "base" in wanted:
        assert base is not None
        out["base"] = base
    if "reward" in wanted or "delta" in wanted:
        if len(voices) != 1:
            raise DualHeadError("The reward distribution and delta are those of one guide; several are attached.")
        (voice,) = voices
        if "reward" in wanted:
            out["reward"] = reward(0)
        if "delta" in wanted:
            out["delta"] = voice.gate * (voice.guide.edit(voice.states) if editing else own(0))
    if "policy" in wanted:
        if mixing:
            assert base is not None
            rewards: list[Term] = [(v.weight, reward(i) - base) for i, v in enumerate(voices)]
            out["policy"] = fuse(base, rewards, fusion)
        else:
            start = logits(_edited(hidden, editing)) if editing else base
            assert start is not None
            spoken: list[Term] = [(v.weight, own(i)) for i, v in enumerate(voices) if v.guide.space == "vocabulary"]
            out["policy"] = fuse(start, spoken)
        out["policy"] = _restricted(out["policy"], voices, base)
    return out


def _edited(hidden: Tensor, editing: Sequence[Voice]) -> Tensor:
    """h + sum_k w_k edit_k, [n, d], in the backbone's dtype; a row whose weights are 0 keeps its bits."""
    edited = hidden
    for voice in editing:
        edited = edited + voice.weight * voice.guide.edit(voice.states)
    return edited.to(hidden.dtype)


def _restricted(policy: Tensor, voices: Sequence[Voice], base: Tensor | None) -> Tensor:
    """Leave a row only the tokens that each guide acting in it allows."""
    for voice in voices:
        if not voice.guide.reads_base:
            continue
        assert base is not None
        allowed = voice.guide.candidates(voice.states, base)
        if allowed is not None:
            acts = torch.as_tensor(voice.weight, device=policy.device) != 0
            # The least finite number, not infinity: what is ruled out must not turn divergences into NaN.
            policy = policy.masked_fill(~allowed & acts, torch.finfo(policy.dtype).min)
    return policy
