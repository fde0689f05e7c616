"""The demonstration at small scale: it trains, measures, and writes a picture and figures."""

import importlib
import json
import sys

import pytest
import torch

from dual_head.cli import main
from dual_head.demo.measure import Point, Reply, measure
from dual_head.demo.world import Request, reward


def test_the_demo_runs_and_writes_its_picture_and_figures(tmp_path, capsys):
    small = ["--pairs", "64", "--steps", "4", "--batch_size", "8", "--prompts", "12"]
    assert main(["demo", "--output_dir", str(tmp_path), *small]) == 0
    said = capsys.readouterr().out
    assert "exact reward over strength" in said
    assert "95% interval" in said
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert [point["alpha"] for point in figures["points"]] == [0, 0.5, 1, 1.5, 2]
    assert figures["points"][0]["kl"] == 0
    assert figures["gain_at_1"]["requests"] == 12
    assert "two guides at once" in said
    assert {"helpful": 0.5, "harmless": 1.5} in [point["alpha"] for point in figures["two_objectives"]]


def test_without_matplotlib_the_demo_imports_and_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("picture", "demonstration"):
        monkeypatch.delitem(sys.modules, f"dual_head.demo.{name}", raising=False)
    demonstration = importlib.import_module("dual_head.demo.demonstration")
    assert not demonstration._draw([], [], [], tmp_path / "demo.png")
    assert not list(tmp_path.iterdir())


def test_a_point_averages_its_replies_and_pairs_gains_by_request():
    request = Request("how do i bake bread ?", False, "bake bread")

    def reply(text: str, kl: float) -> Reply:
        return Reply(request, text, reward(request, text), kl)

    refusal = reply(" sorry , i can not help with that .", 3.0)
    silence = reply("", 1.0)
    before, after = Point(0.0, [silence, silence]), Point(1.0, [refusal, silence])
    assert after.rewards() == [-2.0, 0.0]  # refusing a harmless request costs 2 points
    assert after.kl() == 2.0
    assert after.refusals(harmful=False) == 0.5
    mean, (low, high) = after.gain_over(before)
    assert mean == -1.0
    assert low <= mean <= high


def test_the_divergence_measured_is_that_of_the_traces(tmp_path):
    from torch import nn

    from dual_head import DualHeadModel
    from dual_head.demo import TOY_BACKBONE
    from dual_head.demo.world import sample_requests
    from dual_head.model.pretrained import load_tokenizer

    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    model = DualHeadModel.from_backbone(str(TOY_BACKBONE))
    torch.manual_seed(0)
    nn.init.normal_(model.guides["dual_head"].difference.up.weight, std=0.05)
    (point,) = measure(model, tokenizer, sample_requests(3, seed=0), [1.0])
    for reply in point.replies:
        ids = tokenizer(reply.request.prompt, return_tensors="pt")["input_ids"]
        tail = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        tail = [*tail, tokenizer.eos_token_id] if len(tail) < 56 else tail
        whole = torch.cat([ids, torch.tensor([tail])], 1)
        base = model(whole, alpha=0.0).logits.log_softmax(-1)
        policy = model(whole, alpha=1.0).logits.log_softmax(-1)
        kl = (policy.exp() * (policy - base)).sum(-1)[0, ids.shape[1] - 1 : -1].sum()
        torch.testing.assert_close(torch.tensor(reply.kl), kl, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_at_full_size_guidance_clearly_raises_the_exact_reward(tmp_path):
    torch.set_num_threads(2)
    try:
        assert main(["demo", "--output_dir", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(1)
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["gain_at_1"]["requests"] >= 200
    assert figures["gain_at_1"]["interval"][0] > 0.5
    mixtures = {tuple(p["alpha"].values()): (p["help"], p["harm_avoided"]) for p in figures["two_objectives"]}
    assert mixtures[1.0, 0.0][0] > mixtures[0.0, 0.0][0] + 0.5  # the guide for help helps
    assert mixtures[0.0, 1.0][1] > mixtures[0.0, 0.0][1] + 0.5  # the guide against harm avoids it
    assert [point["kl"] for point in figures["points"]] == sorted(point["kl"] for point in figures["points"])
