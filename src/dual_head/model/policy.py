"""From hidden states to logits of the distributions: the one line of the architecture, at n tokens.

    z = lm_head(h + sum_k w_k hidden_delta_k) + sum_k w_k logit_delta_k          w_k = alpha_k g_k

Generation, training, traces and sweeps all come through here. `products` are the matrix products, `combine` is what
happens to them entry by entry, which a compiler can fuse. One vocabulary product serves where one is enough:

    names             guide in               products [n, V]
    policy            hidden space           lm_head(h + sum_k w_k hidden_delta_k)
    policy            vocabulary space       lm_head(h), logit_delta_k
    reward, trained   vocabulary space       (W + D) h, where the guide is a matrix D beside the lm_head's W

It knows guides as `Guide` has them; which ones act and how strongly is decided above.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dual_head.backbone.decoder import Decoder
from dual_head.errors import DualHeadError
from dual_head.guides import Guide, States
from dual_head.guides.layers import weighted_sum
from dual_head.model.fusion import add_weighted, fuse
from dual_head.model.transfer import Transfer


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
        """alpha * gate, [n, 1]; 1 or 0 for a guide whose states have its alpha already."""
        if self.guide.steers_layers:
            return torch.as_tensor(self.alpha != 0, dtype=torch.float32)
        gate = self.gate
        if isinstance(gate, float) and gate == 1:
            return self.alpha
        weight: Any = self.alpha * gate
        return weight.masked_fill(self.alpha == 0, 0) if isinstance(self.alpha, Tensor) else weight

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


class GuideProducts(NamedTuple):
    """What one guide gives to distributions at n tokens; None for what no named distribution is made of.

    weight, gate [n, 1]: alpha g and g; logit_delta [n, V]; hidden_delta [n, d]; allowed: bool [n, V], which tokens may
    follow; logits [n, V]: of the guide alone, lm_head(h + hidden_delta), or lm_head(h) + logit_delta in one product.
    """

    weight: Tensor | None = None
    gate: Tensor | None = None
    logit_delta: Tensor | None = None
    hidden_delta: Tensor | None = None
    logits: Tensor | None = None
    allowed: Tensor | None = None

    def against(self, base: Any) -> Tensor:
        """The logit delta, by itself or as what its logits are more than the backbone's [n, V]."""
        return self.logits - base if self.logit_delta is None else self.logit_delta  # type: ignore[operator]

    def reward(self, guide: Guide, base: Any) -> Tensor:
        """Logits [n, V] of the distribution that the guide itself stands for."""
        return guide.reward(self.logit_delta, base) if self.logits is None else self.logits  # type: ignore[arg-type]


class Products(NamedTuple):
    """What distributions are made of at n tokens, each vocabulary product once.

    base [n, V]: lm_head(h); steered [n, V]: lm_head(h + sum_k w_k hidden_delta_k); guides: what each guide gives.
    """

    base: Tensor | None = None
    steered: Tensor | None = None
    guides: tuple[GuideProducts, ...] = ()


def distributions(
    backbone: Decoder,
    active: Sequence[ActiveGuide],
    hidden: Tensor,
    names: Collection[str] = ("policy",),
    *,
    fusion: str = "logits",
    upcast: bool = False,
) -> dict[str, Tensor]:
    """Compute logits [n, V] of the named distributions at hidden states [n, d].

    names: "base", the backbone's own; "policy", what is decoded from; of a single guide, "reward", the
    distribution the guide itself stands for, and "delta" = gate * logit_delta (or gate * hidden_delta, [n, d]).
    upcast: fuse in fp32 whatever the weights' dtype.
    """
    at_tokens = products(backbone, active, hidden, names, fusion=fusion)
    return combine([term.guide for term in active], at_tokens, names, fusion=fusion, upcast=upcast)


def products(
    backbone: Decoder, active: Sequence[ActiveGuide], hidden: Tensor, names: Collection[str], *, fusion: str = "logits"
) -> Products:
    """Compute what the named distributions are combined from.

    names: of distributions, or {name: of how many first tokens}; products are as short as what is made of them.
    Errors: reward or delta of several guides.
    """
    # At least one: products of no token have shapes too.
    rows = names if isinstance(names, Mapping) else dict.fromkeys(names, max(1, len(hidden)))
    if ("reward" in rows or "delta" in rows) and len(active) != 1:
        raise DualHeadError("The reward distribution and delta are those of one guide; several are attached.")
    in_hidden = [term for term in active if term.guide.space == "hidden"]
    mixing = fusion == "probabilities" and "policy" in rows
    if mixing and any(term.guide.steers_layers for term in active):
        raise DualHeadError("A guide that steers layers has no share of a mixture. Use fusion='logits'.")

    def longest(*distributions: str) -> int:
        return max([0, *[rows[name] for name in distributions if name in rows]])  # torch.compile knows no `default`

    reward_logits = None
    if "reward" in rows and "delta" not in rows and not in_hidden and not mixing and torch.is_grad_enabled():
        reward_logits = active[0].first(longest("reward", "policy")).reward_logits(backbone)
    steers = bool(in_hidden) and not mixing  # what changes the hidden state needs no logits of the backbone's own
    delta_rows = 0 if in_hidden or reward_logits is not None else longest("reward", "delta")
    base_rows = max(longest("base"), 0 if steers else longest("policy"), delta_rows)
    if any(term.guide.reads_base for term in active):
        base_rows = longest(*rows)
    base = steered = None
    if base_rows:
        computed = (term.guide.base_logits(term.first(base_rows).states) for term in active)
        base = next((logits for logits in computed if logits is not None), None)
        base = backbone.logits(hidden[:base_rows]) if base is None else base
    if steers and "policy" in rows:
        count = rows["policy"]
        steered = backbone.logits(_steered(hidden[:count], [term.first(count) for term in in_hidden]))
    parts = [_of_guide(backbone, term, hidden, rows, mixing, base, reward_logits) for term in active]
    return Products(base, steered, tuple(parts))


def _of_guide(
    backbone: Decoder,
    term: ActiveGuide,
    hidden: Tensor,
    rows: Mapping[str, int],
    mixing: bool,
    base: Tensor | None,
    reward_logits: Tensor | None,
) -> GuideProducts:
    """What one guide gives; reward_logits: the logits of it alone, where one product gave them."""
    weight = gate = logit_delta = hidden_delta = allowed = None
    logits, in_hidden = reward_logits, term.guide.space == "hidden"
    if count := rows.get("policy", 0):
        part = term.first(count)
        if not in_hidden or mixing:
            weight = torch.as_tensor(part.weight, device=hidden.device)
        if term.guide.reads_base:
            assert base is not None
            allowed = term.guide.candidates(part.states, base[:count])
    if count := rows.get("delta", 0):
        part = term.first(count)
        gate = torch.as_tensor(part.gate, device=hidden.device)
        if in_hidden:
            hidden_delta = part.guide.hidden_delta(part.states)
    # The policy is made of the logits of a guide, or of its logit delta, unless it steers the hidden state.
    count = max(rows.get("reward", 0), rows.get("policy", 0) if mixing or not in_hidden else 0)
    if not in_hidden:
        count = max(count, rows.get("delta", 0))
    if count and reward_logits is None:
        part, h = term.first(count), hidden[:count]
        if in_hidden:
            logits = backbone.logits((h + part.guide.hidden_delta(part.states)).to(h.dtype))
        else:
            logit_delta = part.logit_delta(None if base is None else base[:count])
    return GuideProducts(weight, gate, logit_delta, hidden_delta, logits, allowed)


def combine(
    guides: Sequence[Guide],
    products: Products,
    names: Collection[str],
    *,
    fusion: str = "logits",
    upcast: bool = False,
) -> dict[str, Tensor]:
    """Combine products into the logits of the named distributions, token by token and entry by entry."""
    if upcast:
        products = pytree.tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, products)
    base: Any = products.base
    parts = list(zip(guides, products.guides, strict=True))
    out: dict[str, Tensor] = {}
    if "base" in names:
        out["base"] = base
    if "reward" in names:
        (guide, part), *_ = parts
        out["reward"] = part.reward(guide, base)
    if "delta" in names:
        (_, part), *_ = parts
        delta: Any = part.logit_delta if part.hidden_delta is None else part.hidden_delta
        out["delta"] = part.gate * delta
    if "policy" in names:
        if fusion == "probabilities":
            rewards: list[Any] = [(part.weight, part.reward(guide, base) - base) for guide, part in parts]
            policy = fuse(base, rewards, fusion)
        else:
            start = base if products.steered is None else products.steered
            deltas: list[Any] = [(p.weight, p.against(base)) for guide, p in parts if guide.space == "vocabulary"]
            policy = fuse(start, deltas)
        for _, part in parts:
            if part.allowed is not None:
                # The least finite number, not infinity: what is ruled out must not turn divergences into NaN.
                refused = ~part.allowed & (part.weight != 0)
                policy = policy.masked_fill(refused, torch.finfo(policy.dtype).min)
        out["policy"] = policy
    return out


def _steered(hidden: Tensor, active: Sequence[ActiveGuide]) -> Tensor:
    """h + sum_k w_k hidden_delta_k, [n, d], in the backbone's dtype; a row whose weights are 0 keeps its bits."""
    delta = _summed_delta(active)
    if delta is not None:
        return (hidden + delta).to(hidden.dtype)
    steered = hidden
    for term in active:
        steered = add_weighted(steered, term.weight, term.guide.hidden_delta(term.states))
    return steered.to(hidden.dtype)


def _summed_delta(active: Sequence[ActiveGuide]) -> Tensor | None:
    """sum_k w_k hidden_delta_k at once, where all are maps of one hidden state that can be; else None."""
    if len(active) < 2 or torch.compiler.is_compiling():  # a graph makes its own of what is one by one
        return None
    x = active[0].states.get("hidden")
    maps = [change for term in active if (change := term.guide.hidden_delta_map) is not None]
    weights = [weight for term in active if isinstance(weight := term.weight, Tensor)]
    if x is None or len(maps) < len(active) or len(weights) < len(active):
        return None
    if any(term.states["hidden"] is not x for term in active):
        return None
    columns = torch.cat(torch.broadcast_tensors(*weights), -1)  # [n, K]
    delta = weighted_sum(maps, x, columns)
    return None if delta is None else delta.masked_fill((columns == 0).all(-1, keepdim=True), 0)
