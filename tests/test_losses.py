"""Every loss and its gradients are those of whole logits in float64, whether chunked, cut or with prompts shared."""

import copy

import pytest
import torch
from models import guided_lm
from torch import Tensor

from dual_head import AlignedModel
from dual_head.data.collate import PairCollator
from dual_head.guides import guide_class
from dual_head.methods import Method
from dual_head.objectives import objective_class, objective_names
from dual_head.reductions import Scored
from dual_head.training import GuidedLoss

ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 2], "rejected_ids": [11, 12, 2]},
    {"prompt_ids": [13, 14], "chosen_ids": [15, 2], "rejected_ids": [16, 17, 18, 19, 2]},
    {"prompt_ids": [20, 21, 22, 23], "chosen_ids": [24], "rejected_ids": [25, 26, 2]},
]
KINDS = ("reward_head", "linear", "hidden", "multilayer")
CHUNKS = {"pairs cut": 1, "whole pairs": 60_000, "all at once": 10**9}  # bytes of logits at a time


def aligned(kind: str) -> AlignedModel:
    return guided_lm({"g": guide_class(kind).Config()}, std=0.3)


def gradients(model: AlignedModel) -> dict[str, Tensor]:
    return {name: p.grad.double() for name, p in model.guides.named_parameters() if p.grad is not None}


def the_long_way(model: AlignedModel, objective) -> tuple[float, dict[str, Tensor]]:
    """Each response by itself, logits at every position, log_softmax over all of V; plain autograd."""
    model = copy.deepcopy(model).double()
    scalars: dict[str, list[Tensor]] = {}
    row: list[int] = []
    for i, (pair, side) in enumerate((pair, side) for pair in ROWS for side in ("chosen", "rejected")):
        prompt, reply = pair["prompt_ids"], pair[f"{side}_ids"]
        encoded = model.encode(torch.tensor([prompt + reply]), guides=("g",))
        at = slice(len(prompt) - 1, -1)
        states = {"g": {name: x[0, at] for name, x in encoded.states["g"].items()}}
        wanted = ("base", "policy", "reward", "delta")
        z = model.distributions(encoded.hidden[0, at], states, torch.ones(1, 1), wanted)
        logps = {name: z[name].log_softmax(-1) for name in ("base", "policy", "reward")}
        said = torch.tensor(reply)[:, None]
        values = {f"{name}_logps": x.gather(-1, said)[:, 0] for name, x in logps.items()}
        values["kl"] = (logps["policy"].exp() * (logps["policy"] - logps["base"])).sum(-1)
        values["delta_norm"] = z["delta"].square().sum(-1)
        if (s := model.guide("g").gate_logit(states["g"])) is not None:
            values["gate_logit"] = s
        for name, x in values.items():
            scalars.setdefault(name, []).append(x)
        row += [i] * len(reply)
    scored = Scored({name: torch.cat(x) for name, x in scalars.items()}, torch.tensor(row), len(ROWS))
    loss = objective(scored).loss.mean()
    if loss.requires_grad:
        loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("budget", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("share", [False, True], ids=["prompts apart", "prompts shared"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", objective_names())
def test_loss_and_gradients_are_those_of_whole_logits_in_float64(name, kind, share, budget):
    objective, model = objective_class(name)(), aligned(kind)
    known, known_gradients = the_long_way(model, objective)
    step = GuidedLoss(model, Method(name="g", guide=model.guide("g").config, objectives=(objective,)), guide="g")
    step.budget = budget
    out = step(**PairCollator(0, share_prompt=share)(ROWS))
    assert out[name].mean().item() == pytest.approx(known, rel=1e-5, abs=1e-7)
    if not out["loss"].requires_grad:
        assert not known_gradients  # the entropy of a gate that does not move
        return
    out["loss"].backward()
    ours = gradients(model)
    for parameter, known_gradient in known_gradients.items():
        off = objective.weight * known_gradient
        assert (ours[parameter] - off).norm() <= 1e-5 * off.norm() + 1e-9, parameter
