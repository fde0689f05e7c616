"""From hidden states to the distributions somebody asks for: the one line of the architecture, at n tokens.

    z = lm_head(h + sum_k w_k hidden_delta_k) + sum_k w_k logit_delta_k          w_k = alpha_k g_k

Generation, training, traces and sweeps all come through here, so that one vocabulary product serves where
one is enough: the backbone's own logits are computed only when they are asked for, or when no guide edits.
`products` are the matrix products, `combine` is all that happens to them entry by entry, which a compiler can fuse.
It knows guides as `Guide` has them; which ones act and how strongly is decided above.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dual_head.backbone import Decoder
from dual_head.errors import DualHeadError
from dual_head.fusion import Term, fuse
from dual_head.guides import Guide, States
from dual_head.heads import weighted_sum
from dual_head.transfer import Transfer


@dataclass(frozen=True)
class ActiveGuide:
    """One acting guide at n tokens: states [n, *], and alpha, a number or [n, 1] (or [B, T, 1])."""

    guide: Guide
    states: States
    alpha: Tensor | float
    transfer: Transfer | None = None

    @property
    def gate(self) -> Tensor | float:
        """The guide's gate, [n, 1], or the constant it is."""
        gate = self.guide.gate(self.states)
        return gate.unsqueeze(-1) if isinstance(gate, Tensor) else gate

    @property
    def weight(self) -> Tensor | float:
        """alpha * gate, [n, 1]."""
        gate = self.gate
        return self.alpha if isinstance(gate, float) and gate == 1 else self.alpha * gate

    def first(self, rows: int) -> "ActiveGuide":
        """The same at so many of the first tokens."""
        if all(len(x) == rows for x in self.states.values()):
            return self
        alpha = self.alpha[:rows] if isinstance(self.alpha, Tensor) and len(self.alpha) > 1 else self.alpha
        return replace(self, states={name: x[:rows] for name, x in self.states.items()}, alpha=alpha)

    def reward_logits(self, backbone: Decoder) -> Tensor | None:
        """Logits [n, V] of the distribution the guide itself stands for, where one product gives them."""
        matrix = backbone.matrix() if self.transfer is None else None
        return None if matrix is None else self.guide.reward_logits(self.states, matrix)

    def logit_delta(self, base: Tensor | None) -> Tensor:
        """The guide's logit_delta over the backbone's vocabulary, [n, V]."""
        logit_delta = self.guide.logit_delta(self.states, base)
        return logit_delta if self.transfer is None else self.transfer.logit_delta(logit_delta)


Products = dict[str, Tensor]


def distributions(
    backbone: Decoder,
    active: Sequence[ActiveGuide],
    hidden: Tensor,
    wanted: Collection[str] = ("policy",),
    *,
    fusion: str = "logits",
    upcast: bool = False,
) -> dict[str, Tensor]:
    """Compute logits [n, V] of the wanted distributions at hidden states [n, d].

    wanted: "base", the backbone's own; "policy", what is decoded from; of a single voice, "reward", the
    distribution the guide itself stands for, and "delta" = gate * logit_delta (or gate * edit, [n, d]).
    upcast: fuse in fp32 whatever the weights' dtype.
    """
    said = products(backbone, active, hidden, wanted, fusion=fusion)
    return combine([voice.guide for voice in active], said, wanted, fusion=fusion, upcast=upcast)


def products(
    backbone: Decoder, active: Sequence[ActiveGuide], hidden: Tensor, wanted: Collection[str], *, fusion: str = "logits"
) -> Products:
    """Compute what the wanted distributions are combined from: each vocabulary product [n, V], once.

        base        lm_head(h), where anybody needs it
        edited      lm_head(h + sum_k w_k hidden_delta_k), where a guide edits
        own/k       the logit_delta of voice k; of one that edits, the logits it alone would give
        reward/0    lm_head(h) + logit_delta in one product, in place of own/0 where that is all there is to learn from
        weight/k    alpha_k g_k [n, 1];  gate/k and edit/k, which delta is made of;  allowed/k bool [n, V]

    wanted: names, or {name: of how many first tokens}; a product that no longer distribution is made of is as short.
    Errors: reward or delta of several active.
    """
    # At least one: products of no token have shapes too.
    rows = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, max(1, len(hidden)))
    if ("reward" in rows or "delta" in rows) and len(active) != 1:
        raise DualHeadError("The reward distribution and delta are those of one guide; several are attached.")
    editing = [voice for voice in active if voice.guide.space == "hidden"]
    mixing = fusion == "probabilities" and "policy" in rows
    out: Products = {}

    def of(*names: str) -> int:
        return max([0, *[rows[name] for name in names if name in rows]])  # torch.compile knows no `default`

    merged = None
    if "reward" in rows and "delta" not in rows and not editing and not mixing and torch.is_grad_enabled():
        merged = active[0].first(of("reward", "policy")).reward_logits(backbone)
    if merged is not None:
        out["reward/0"] = merged
    whole = editing and not mixing  # what edits needs no logits of the backbone's own
    based = max(of("base"), 0 if whole else of("policy"), 0 if editing or merged is not None else of("reward", "delta"))
    if any(voice.guide.reads_base for voice in active):
        based = of(*rows)
    if based:
        known = (voice.guide.base_logits(voice.first(based).states) for voice in active)
        base = next((logits for logits in known if logits is not None), None)
        out["base"] = backbone.logits(hidden[:based]) if base is None else base
    if whole and "policy" in rows:
        out["edited"] = backbone.logits(
            _edited(hidden[: of("policy")], [voice.first(of("policy")) for voice in editing])
        )
    for i, voice in enumerate(active):
        out |= _said(backbone, i, voice, hidden, rows, mixing=mixing, base=out.get("base"), merged=merged is not None)
    return out


def _said(
    backbone: Decoder,
    i: int,
    voice: ActiveGuide,
    hidden: Tensor,
    rows: Mapping[str, int],
    *,
    mixing: bool,
    base: Tensor | None,
    merged: bool,
) -> Products:
    """What voice i says of the products."""
    out: Products = {}
    edits = voice.guide.space == "hidden"
    if count := rows.get("policy", 0):
        speaks = voice.first(count)
        if not edits or mixing:
            out[f"weight/{i}"] = torch.as_tensor(speaks.weight, device=hidden.device)
        if voice.guide.reads_base:
            assert base is not None
            if (allowed := voice.guide.candidates(speaks.states, base[:count])) is not None:
                out[f"allowed/{i}"] = allowed
    if count := rows.get("delta", 0):
        speaks = voice.first(count)
        out[f"gate/{i}"] = torch.as_tensor(speaks.gate, device=hidden.device)
        if edits:
            out[f"edit/{i}"] = speaks.guide.hidden_delta(speaks.states)
    own = max(rows.get("reward", 0), rows.get("policy", 0) if mixing or not edits else 0)
    if not edits:
        own = max(own, rows.get("delta", 0))
    if own and not merged:
        speaks, at = voice.first(own), hidden[:own]
        if edits:
            out[f"own/{i}"] = backbone.logits((at + speaks.guide.hidden_delta(speaks.states)).to(at.dtype))
        else:
            out[f"own/{i}"] = speaks.logit_delta(None if base is None else base[:own])
    return out


def combine(
    guides: Sequence[Guide],
    said: Products,
    wanted: Collection[str],
    *,
    fusion: str = "logits",
    upcast: bool = False,
) -> dict[str, Tensor]:
    """Combine products into the logits of the wanted distributions, token by token and entry by entry."""
    if upcast:
        said = {key: x.float() if x.is_floating_point() else x for key, x in said.items()}
    base = said.get("base")
    out: dict[str, Tensor] = {}
    if "base" in wanted:
        out["base"] = said["base"]
    if "reward" in wanted:
        out["reward"] = said["reward/0"] if "reward/0" in said else _reward(guides, said, 0)
    if "delta" in wanted:
        out["delta"] = said["gate/0"] * said["edit/0" if "edit/0" in said else "own/0"]
    if "policy" in wanted:
        if fusion == "probabilities":
            rewards: list[Term] = [(said[f"weight/{i}"], _reward(guides, said, i) - said["base"]) for i in _all(guides)]
            policy = fuse(said["base"], rewards, fusion)
        else:
            spoken: list[Term] = [
                (said[f"weight/{i}"], _direction(said, i)) for i in _all(guides) if guides[i].space == "vocabulary"
            ]
            start = said.get("edited", base)
            assert start is not None
            policy = fuse(start, spoken)
        for i in _all(guides):
            if f"allowed/{i}" in said:
                # The least finite number, not infinity: what is ruled out must not turn divergences into NaN.
                ruled_out = ~said[f"allowed/{i}"] & (said[f"weight/{i}"] != 0)
                policy = policy.masked_fill(ruled_out, torch.finfo(policy.dtype).min)
        out["policy"] = policy
    return out


def _all(guides: Sequence[Guide]) -> range:
    return range(len(guides))


def _direction(said: Products, i: int) -> Tensor:
    return said[f"own/{i}"] if f"own/{i}" in said else said[f"reward/{i}"] - said["base"]


def _reward(guides: Sequence[Guide], said: Products, i: int) -> Tensor:
    """Logits of the distribution that guide i itself stands for."""
    own = said[f"own/{i}"]
    return own if guides[i].space == "hidden" else guides[i].reward(own, said["base"])


def _edited(hidden: Tensor, editing: Sequence[ActiveGuide]) -> Tensor:
    """h + sum_k w_k hidden_delta_k, [n, d], in the backbone's dtype; a row whose weights are 0 keeps its bits."""
    added = _added_up(editing)
    if added is not None:
        return (hidden + added).to(hidden.dtype)
    edited = hidden
    for voice in editing:
        edited = edited + voice.weight * voice.guide.hidden_delta(voice.states)
    return edited.to(hidden.dtype)


def _added_up(editing: Sequence[ActiveGuide]) -> Tensor | None:
    """sum_k w_k hidden_delta_k at once, where all edits are maps of one hidden state that can be; else None."""
    if len(editing) < 2 or torch.compiler.is_compiling():  # a graph makes its own of what is one by one
        return None
    x = editing[0].states.get("hidden")
    maps = [own for voice in editing if (own := voice.guide.hidden_delta_map) is not None]
    weights = [weight for voice in editing if isinstance(weight := voice.weight, Tensor)]
    if x is None or len(maps) < len(editing) or len(weights) < len(editing):
        return None
    if any(voice.states["hidden"] is not x for voice in editing):
        return None
    return weighted_sum(maps, x, torch.cat(torch.broadcast_tensors(*weights), -1))
