"""Every loss and its gradients are those of whole logits in float64, whether chunked, cut or with prompts shared."""

import copy

import pytest
import torch
from models import guided_lm
from torch import Tensor

from dual_head import AlignedModel
from dual_head.backbone.features import Features
from dual_head.data.collate import PairCollator
from dual_head.guides import guide_class
from dual_head.losses import objective_class, objective_names
from dual_head.methods import Method
from dual_head.ops.token_scores import Scored
from dual_head.train.step import GuidedLoss

ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 2], "rejected_ids": [11, 12, 27, 28, 29, 30, 2]},
    {"prompt_ids": [13, 14], "chosen_ids": [15, 2], "rejected_ids": [16, 17, 18, 19, 2]},
    {"prompt_ids": [20, 21], "chosen_ids": [24], "rejected_ids": [25, 26]},  # fits into a row with the one before
]
# The same replies one by one: the first of each pair with a label, the second given to a wrong prompt.
SINGLE = [
    {"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"], "mismatched_ids": row["rejected_ids"]}
    | {"label": label}
    for row, label in zip(ROWS, (True, False, True), strict=True)
]
LEARNS_FROM = {"pairs": ("pairs",), "feedback": ("feedback",), "both": ("pairs", "feedback")}
CASES = [(name, rows) for name in objective_names() for rows in LEARNS_FROM[objective_class(name).learns_from]]
KINDS = ("reward_head", "linear", "hidden", "multilayer")
CHUNKS = {"pairs cut": 1, "whole pairs": 60_000, "all at once": 10**9}  # bytes of logits at a time


def aligned(kind: str) -> AlignedModel:
    return guided_lm({"g": guide_class(kind).Config()}, spread=0.2)


def gradients(model: AlignedModel) -> dict[str, Tensor]:
    return {name: p.grad.double() for name, p in model.guides.named_parameters() if p.grad is not None}


def the_long_way(model: AlignedModel, objective, learnt_from: str) -> tuple[float, dict[str, Tensor]]:
    """Each response by itself from the backbone's hidden states; log_softmax over all of V, plain autograd."""
    backbone, model = model.backbone, copy.deepcopy(model).double()
    scalars: dict[str, list[Tensor]] = {}
    row: list[int] = []
    for i, (pair, side) in enumerate((pair, side) for pair in ROWS for side in ("chosen", "rejected")):
        prompt, reply = pair["prompt_ids"], pair[f"{side}_ids"]
        output, layers = backbone(torch.tensor([prompt + reply]), layers=model.guide("g").hidden_layers)
        features = Features(output.last_hidden_state.double(), {i: x.double() for i, x in layers.items()})
        at = slice(len(prompt) - 1, -1)
        encoded = model.encode_features(features, ["g"])["g"]
        states = {"g": {name: x[0, at] for name, x in encoded.items()}}
        wanted = ("base", "policy", "reward", "delta")
        z = model.distributions(features.hidden[0, at], states, torch.ones(1, 1), wanted)
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
    if learnt_from == "feedback":
        scored = single(scored)
    loss = objective(scored).loss.mean()
    if loss.requires_grad:
        loss.backward()
    return loss.item(), gradients(model)


def single(scored: Scored) -> Scored:
    """The replies by themselves, with their labels and the divergence that mismatched ones show."""
    ratio = scored.sums("policy_logps")[1] - scored.sums("base_logps")[1]
    reply = scored.row % 2 == 0
    values = {name: x[reply] for name, x in scored.values.items()}
    desirable = torch.tensor([row["label"] for row in SINGLE])
    return Scored(values, scored.row[reply], len(ROWS), desirable, ratio.mean().detach().clamp(min=0))


@pytest.mark.parametrize("budget", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("share", [False, True], ids=["prompts apart", "prompts shared"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "learnt_from"), CASES)
def test_loss_and_gradients_are_those_of_whole_logits_in_float64(name, learnt_from, kind, share, budget):
    objective, model = objective_class(name)(), aligned(kind)
    known, known_gradients = the_long_way(model, objective, learnt_from)
    step = GuidedLoss(model, Method(name="g", guide=model.guide("g").config, objectives=(objective,)), guide="g")
    step.budget = budget
    out = step(**PairCollator(0, share_prompt=share)(ROWS if learnt_from == "pairs" else SINGLE))
    assert out["loss"].item() == pytest.approx(objective.weight * known, rel=1e-5, abs=1e-7)
    if not known_gradients:
        return  # the entropy of a gate that does not move
    out["loss"].backward()
    ours = gradients(model)
    known_gradients = {parameter: objective.weight * x for parameter, x in known_gradients.items()}
    distances = {parameter: (ours[parameter] - x).norm() for parameter, x in known_gradients.items()}
    whole = torch.stack([x.norm() for x in known_gradients.values()]).norm()
    assert torch.stack(list(distances.values())).norm() <= 1e-5 * whole
    for parameter, distance in distances.items():  # fp32 hidden states through an attention lose a digit more
        assert distance <= 1e-4 * known_gradients[parameter].norm() + 1e-9, parameter


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_gate_keeps_for_its_backward_pass_is_taken_from_the_logits(kind):
    model = aligned(kind)
    step = GuidedLoss(model, Method(name="g", guide=model.guide("g").config, objectives=()), guide="g")
    assert step.budget == (112 if kind == "reward_head" else 128) * 2**20
