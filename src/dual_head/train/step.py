"""A training step as a module: a batch of pairs in, the loss and per-pair metrics out.

Backbone and guides run once over a batch, or guides alone over what is kept of one; then the vocabulary axis, chunk
by chunk. The Trainer wraps it, and DDP or FSDP in turn. It knows methods as values, and no data set.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dual_head.backbone.features import Features, Rows
from dual_head.data.collate import NO_TOKEN
from dual_head.errors import DualHeadError
from dual_head.guides import States
from dual_head.guides.layers import KEPT
from dual_head.losses import Objective, name_of
from dual_head.methods import Method
from dual_head.model import policy
from dual_head.model.aligned import AlignedModel, Encoded
from dual_head.model.alpha import Strengths
from dual_head.model.policy import ActiveGuide, Products
from dual_head.ops.compiled import worth_compiling
from dual_head.ops.pair_groups import Group, by_pairs, group_order, groups_of
from dual_head.ops.token_scores import Head, Scored, Tokens, auto_budget, pick_tokens, reduce_tokens


class GuidedLoss(nn.Module):
    """One training step as a module: a batch of pairs in, the loss and per-pair metrics out.

    L = sum_k weight_k mean_pairs loss_k. Only the guide named `guide` has gradients, and the second one where the
    method trains it. tokens: how many it will score in all, which decides whether its loops are worth compiling.
    """

    # The loss is a mean over the batch that is given. Without this a Trainer concludes from forward's ** that it was
    # divided by the number of items of a whole step, and multiplies it by the number of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(
        self, model: AlignedModel, method: Method, *, guide: str, budget: int | None = None, tokens: float = math.inf
    ):
        super().__init__()
        self.model = model
        self.method = method
        self.guide = guide
        self.names = (guide, *list(method.guides())[1:])
        shape = model.backbone.shape
        has_gate = any(
            model.guide(name).cache_layers for name in self.names
        )  # which keeps memory for its backward pass
        self.budget = budget or auto_budget(shape.vocab_size, shape.hidden_size, kept=KEPT if has_gate else 0)
        self.looking = True  # False leaves out what is computed for metrics alone
        self._head = _head_of(model, self.names, compiled=worth_compiling(shape.vocab_size, tokens))

    @property
    def compiled(self) -> bool:
        """Whether the loops over the vocabulary are compiled, at their first use."""
        return self._head.compiled

    @property
    def config(self):
        """The model's configuration, where the Trainer looks for it."""
        return self.model.config

    def activation_checkpointing_enable(self, **_options: Any) -> None:
        """Do nothing: the backbone keeps no activations and the vocabulary part is recomputed anyway."""

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Take a PairBatch; give {"loss": [], metrics: [B]}."""
        guide = self.model.guide(self.guide)
        if not guide.trainable and self.training:
            raise DualHeadError(
                f"The guide '{self.guide}' only acts during decoding, so no objective can train it. "
                "Train what it is made of (for a reward model: 'dual-head train reward')."
            )
        _require_gathered(self.model)
        encoded, at = self._encode(**batch)
        hidden, states = encoded.hidden, encoded.states
        del encoded  # whole sequences, of which only the scored positions are read
        needs = self._needs()
        labels, row, counts, desirable = batch["labels"], batch["row"], batch["counts"], batch.get("desirable")
        pairs, divergence = len(counts) // 2, None
        if desirable is not None:
            # [c c m m m | C M] to [c c C | m m m M]: replies c are learnt from, mismatched ones m only measured.
            order, count = (row % 2).argsort(stable=True), sum(counts[::2])
            first, second = order[:count], order[count:]
            mismatched = pick_tokens(hidden, states, at[second], labels[second], row[second])
            divergence = self._divergence(mismatched, pairs)
            at, labels, row = at[first], labels[first], row[first]
            counts = [0 if i % 2 else count for i, count in enumerate(counts)]
        none = pick_tokens(hidden, states, at[:0], labels[:0], row[:0])
        groups = groups_of(
            counts,
            self.budget,
            chosen_bytes=self._head.bytes_held(none, needs.read),
            rejected_bytes=self._head.bytes_held(none, needs.of_rejected),
        )
        order = group_order(groups, row)
        tokens = pick_tokens(hidden, states, at[order], labels[order], row[order])
        del hidden, states, none

        def loss_of(part: Tokens, group: Group) -> dict[str, Tensor]:
            of_group = None if desirable is None else desirable[group.first : group.first + group.pairs]
            context = {"pairs": group.pairs, "desirable": of_group, "divergence": divergence}
            return self._loss(part, needs, of=pairs, **context)

        return by_pairs(tokens, groups, loss_of, self.model.parameters())

    @torch.no_grad()
    def _divergence(self, tokens: Tokens, replies: int) -> Tensor:
        """max(0, mean of log pi(y) - log pi_base(y)) of mismatched replies y, over all processes, in nats, []."""
        values = reduce_tokens(tokens, self._head, ("policy_logps", "base_logps"), budget=self.budget)
        scored = Scored(values, tokens.row, replies)
        ratio = (scored.sums("policy_logps")[1] - scored.sums("base_logps")[1]).mean()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(ratio)
            ratio /= dist.get_world_size()
        return ratio.clamp(min=0)

    def _encode(
        self,
        *,
        at: Tensor,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        parts: Tensor | None = None,
        sequences: Tensor | None = None,
        within: Tensor | None = None,
        tail: int = 0,
        hidden: Tensor | None = None,
        layers: dict[int, Tensor] | None = None,
        **_: Any,
    ) -> tuple[Encoded, Tensor]:
        """One pass over the batch, or over what is kept of one (hidden, layers [R, T, d]); and where `at` is in it.

        A guide without a history sees the scored positions alone. One that looks back sees whole sequences, even
        where the backbone has read a prompt once for both. A model reads rows as they are, through the masks that
        keep responses apart.
        """
        guide, select = self.model.guide(self.guide), None
        if not guide.reads_tokens and not guide.cache_layers:
            select, at = Rows(at[None]), torch.arange(len(at), device=at.device)
        elif not guide.reads_tokens and sequences is not None:
            assert within is not None
            # [. . p p p c c c] and [. p p p r r r r]: p is looked back at, and only the tail is scored.
            select = Rows(sequences.clamp(min=0), sequences != NO_TOKEN, slice(-tail, None), together=2)
            at = within
        if hidden is not None:
            features = Features(hidden, layers or {})
            features = features if select is None else features.select(select)
            return Encoded(features.hidden, self.model.encode_features(features, self.names)), at
        masks = None if parts is None else self.model.branch_masks(parts)
        inputs: dict[str, Any] = {"attention_mask": masks, "position_ids": position_ids}
        if guide.steers_layers:
            assert input_ids is not None
            inputs["strengths"] = self._strengths(input_ids, at)
        encoded = self.model.encode(input_ids, **inputs, guides=self.names, select=select)
        return encoded, at

    def _strengths(self, input_ids: Tensor, at: Tensor) -> tuple[Strengths, Tensor]:
        """Every guide at alpha = 1, in rows whose replies begin behind the first of the scored positions `at`."""
        rows, width = input_ids.shape
        first = at.new_full((rows,), width).scatter_reduce(0, at // width, at % width, "amin")
        acting = Strengths(self.names, (None,) * len(self.names), first[:, None] + 1)
        return acting, torch.ones(1, len(self.names), device=at.device)

    def _needs(self) -> "_Needs":
        """What the objectives of this step read."""
        objectives = tuple(x for x in self.method.objectives if x.weight or self.looking)
        read = [(x, x.needs | x.metric_needs if self.looking else x.needs) for x in objectives]
        return _Needs(
            objectives,
            read=frozenset(need for _, needs in read for need in needs),
            of_rejected=frozenset(need for x, needs in read if x.reads_rejected for need in needs),
            trained=frozenset(need for x in objectives if x.weight for need in x.needs),
        )

    def _loss(self, tokens: Tokens, needs: "_Needs", *, of: int, pairs: int, **feedback: Any) -> dict[str, Tensor]:
        """The share that some pairs of a batch of `of` have in its loss, and their metrics [pairs].

        feedback: of single replies, see `Scored`.
        """
        values = reduce_tokens(
            tokens,
            self._head,
            needs.read,
            first=dict.fromkeys(needs.read - needs.of_rejected, tokens.chosen),
            measured=needs.read - needs.trained,
            budget=self.budget,
        )
        gate_logit = self.model.guide(self.guide).gate_logit(tokens.states[self.guide])
        if gate_logit is not None:
            values["gate_logit"] = gate_logit
        # Of rejected responses what no loss reads is missing; filled with NaN, a wrong read shows.
        #     policy_logps  [c c c c | r r r r]
        #     kl            [c c c c | nan ...]
        values = {name: F.pad(x, (0, len(tokens.row) - len(x)), value=math.nan) for name, x in values.items()}
        scored = Scored(values, tokens.row, pairs, **feedback)
        loss = torch.zeros((), device=tokens.row.device)
        metrics: dict[str, Tensor] = {}
        for objective in needs.objectives:
            if gate_logit is None and "gate_logit" in objective.needs:
                continue  # there is no gate, or it is constant
            terms = objective(scored)
            metrics[name_of(objective)] = terms.loss.detach()
            metrics |= {name: value.detach() for name, value in terms.metrics.items()}
            if objective.weight:
                loss = loss + objective.weight * terms.loss.sum() / of
        return {"loss": loss, **metrics}


@dataclass(frozen=True)
class _Needs:
    """Scalars that the objectives of a step read: of any token, of tokens of rejected responses, and with gradients."""

    objectives: tuple[Objective, ...]
    read: frozenset[str]
    of_rejected: frozenset[str]
    trained: frozenset[str]


def _require_gathered(model: AlignedModel) -> None:
    """Refuse guides that FSDP shards apart from the loss: their gradients, taken in its forward, would be lost."""
    if any(isinstance(x, DTensor) for x in model.parameters() if x.requires_grad):
        raise DualHeadError(
            "A guide is sharded apart from the loss that trains it, so that its gradient would be lost. Shard the "
            "backbone's layers and the whole GuidedLoss, and nothing between: fully_shard(layer), fully_shard(loss)."
        )


class _Group(NamedTuple):
    """Guides that are run together, and what they give: {distribution: its name in `policy`}."""

    names: tuple[str, ...]
    gives: dict[str, str]


def _head_of(model: AlignedModel, names: tuple[str, ...], *, compiled: bool) -> Head:
    """The distributions at alpha = 1: of all guides together, of the first by itself, and of the second."""
    backbone, fusion = model.backbone, model.config.fusion
    together, first = {"base": "base", "policy": "policy"}, {"reward": "reward", "delta": "delta"}
    groups = [_Group(names, together | first)]
    if len(names) > 1:
        groups = [_Group(names, together), _Group(names[:1], first), _Group(names[1:], {"second": "policy"})]
    guides = {name: model.guide(name) for name in names}

    def products(hidden: Tensor, states: Mapping[str, States], lengths: Mapping[str, int]) -> list[Products | None]:
        results: list[Products | None] = []
        for group in groups:
            rows = {group.gives[name]: count for name, count in lengths.items() if name in group.gives}
            active = [ActiveGuide(guides[name], states[name], 1.0, model.transfer(name)) for name in group.names]
            results.append(policy.products(backbone, active, hidden, rows, fusion=fusion) if rows else None)
        return results

    def combine(results: list[Products | None], distributions: frozenset[str]) -> dict[str, Tensor]:
        logits = {}
        for group, part in zip(groups, results, strict=True):
            names = {group.gives[name]: name for name in distributions if name in group.gives}
            if part is not None and names:
                z = policy.combine([guides[name] for name in group.names], part, names, fusion=fusion, upcast=True)
                logits |= {names[name]: x for name, x in z.items()}
        return logits

    return Head(products, combine, compiled=compiled)
