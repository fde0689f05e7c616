"""The sides of the GPU's comparison of losses: the library's, plain autograd, other people's fused losses, the bound.

Each is a function of nothing that gives a loss; `with_gradient` makes a step of it. It knows no clock and no table.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import job
import torch
import torch.nn.functional as F
from scale import Shape
from torch import Tensor, nn
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
from transformers import LlamaForCausalLM

from dual_head import AlignedModel, method
from dual_head.train.step import GuidedLoss

ALPHA, BETA = 0.5, 0.05  # the constant gate, and the preference's, as the method has them

Side = Callable[[], Tensor]


@dataclass(frozen=True)
class Responses:
    """Pairs of responses of one length, chosen first: hidden [n, d] bf16, labels [n], and the batch that they are."""

    hidden: Tensor
    labels: Tensor
    length: int
    batch: dict[str, Any]

    @classmethod
    def of(cls, shape: Shape, tokens: int, length: int, device: str) -> "Responses":
        """Make so many tokens of random states."""
        hidden = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16, device=device)
        labels = torch.randint(job.SPECIAL, shape.vocab, (tokens,), device=device)
        at = torch.arange(tokens, device=device)
        counts = [length] * (tokens // length)
        batch = {"hidden": hidden[None], "at": at, "labels": labels, "row": at // length, "counts": counts}
        return cls(hidden, labels, length, batch)


def head_loss(lm: LlamaForCausalLM) -> GuidedLoss:
    """The library's Dual-Head losses with a gate that is a number, so that nothing but the reductions is left."""
    chosen = method("dual_head").with_options({"gate": "constant"})
    model = AlignedModel.from_backbone(lm, {"dual_head": chosen.guide})
    model.guides.to(torch.bfloat16)  # as the other sides' weights are
    loss = GuidedLoss(model, chosen, guide="dual_head")
    loss.looking = False
    return loss


def library_side(loss: GuidedLoss, said: Responses) -> Side:
    """The library's losses of some responses."""
    return lambda: loss(**said.batch)["loss"]


def plain_side(said: Responses, base: Tensor, difference: Tensor) -> Side:
    """The same two losses by plain autograd over [n, V] in fp32."""

    def losses() -> Tensor:
        z_base, own = said.hidden @ base.T, said.hidden @ difference.T
        policy, reward = ((z_base + weight * own).float().log_softmax(-1) for weight in (ALPHA, 1.0))
        policy, reward = (x.gather(-1, said.labels[:, None]).view(-1, 2, said.length) for x in (policy, reward))
        chosen, rejected = reward.sum(-1).unbind(1)
        return -policy[:, 0].mean() - F.logsigmoid(BETA * (chosen - rejected)).mean()

    return losses


def fused_sides(said: Responses, base: Tensor, weight: Tensor) -> dict[str, Side | None]:
    """Other people's fused losses of one matrix: fewer terms than the library's, by name; None where not installed."""
    hidden, labels = said.hidden, said.labels
    liger = _optional("liger_kernel.transformers", "LigerFusedLinearCrossEntropyLoss")
    dpo = _optional("liger_kernel.chunked_loss", "LigerFusedLinearDPOLoss")
    cut = _optional("cut_cross_entropy", "linear_cross_entropy")
    options = LinearCrossEntropyOptions()
    return {
        "torch, linear_cross_entropy": lambda: F.linear_cross_entropy(hidden, weight, labels, options=options),
        "Liger, linear cross-entropy": liger and functools.partial(liger(), weight, hidden, labels),
        "Liger, linear DPO": dpo and _dpo_side(dpo(), said, base, weight),
        "cut-cross-entropy": cut and functools.partial(cut, hidden, weight, labels),
    }


def _dpo_side(loss: Any, said: Responses, base: Tensor, weight: Tensor) -> Side:
    """Liger wants rows of one response, all chosen ones first."""
    hidden, labels = (x.unflatten(0, (-1, 2, said.length)).transpose(0, 1) for x in (said.hidden, said.labels))
    hidden, labels = hidden.flatten(0, 1).contiguous(), labels.flatten(0, 1).contiguous()
    return lambda: loss(weight, hidden, labels, ref_input=hidden, ref_weight=base)[0]


def _optional(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


def products(said: Responses, base: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """What no implementation can leave out: z_LM, z_RM and dW_RM."""

    def run() -> Tensor:
        z = said.hidden @ base.T
        return (z + said.hidden @ weight.T).T @ said.hidden

    return run


def with_gradient(side: Side, *owners: nn.Module | Tensor) -> Callable[[], None]:
    """A loss with its gradient, which is then thrown away; owners: what has it."""

    def run() -> None:
        side().backward()
        for owner in owners:
            if isinstance(owner, nn.Module):
                owner.zero_grad()
            else:
                owner.grad = None

    return run
