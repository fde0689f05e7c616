"""The equations of MAV by hand: a = MLP(fuse(pooled, normalised layers)) and its loss. Sizes: tests/guides."""

import pytest
import torch
from equations import PAIRS, Logits, expected
from files import word_tokenizer
from models import BOS, LAYERS, guided_lm, tiny_lm
from torch import Tensor

from dual_head import AlignedModel, method
from dual_head.cli.training import build_parser
from dual_head.data.collate import PairCollator
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.model.papers import MAVModel
from dual_head.train.step import GuidedLoss

BATCH = PairCollator(0)(PAIRS)
IDS = torch.tensor([[BOS, 5, 6, 7]])


def aligned(architecture: str = "llama", *, spread: float = 0.1, **options) -> tuple[AlignedModel, GuidedLoss]:
    chosen = method("mav").with_options(options)
    model = guided_lm({"mav": chosen.guide}, architecture, spread=spread)
    return model, GuidedLoss(model, chosen, guide="mav")


def logits_of(model: AlignedModel, *, normalise: bool = True):
    """z_base and a = W_2 relu(W_1 relu(W_f u)) of a text in float64, from transformers' own hidden states."""
    guide = model.guide("mav")
    w = {name: value.double() for name, value in guide.state_dict().items()}

    def of(ids: Tensor) -> Logits:
        out = model.backbone.lm(ids, output_hidden_states=True)
        parts = []
        for layer in (1, LAYERS):  # of two layers the first is the middle one, too
            h = out.hidden_states[layer][0].double()
            if normalise:
                h = h / h.pow(2).mean(-1, keepdim=True).sqrt()
            parts.append(h.unflatten(-1, (guide.width, -1)).mean(-1))  # neighbours averaged
        u = torch.cat(parts, -1)
        fused = (u @ w["fusion.weight"].T + w["fusion.bias"]).relu()
        inner = (fused @ w["mlp.weight"].T + w["mlp.bias"]).relu()
        return Logits(out.logits[0].double(), inner @ w["head.up.weight"].T + w["head.up.bias"])

    return of


@torch.no_grad()
@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("options", [{}, {"guide.width": 8}, {"guide.width": 8, "guide.normalise": False}])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_policy_is_the_backbone_plus_alpha_times_the_mlp(architecture, options, alpha):
    model, _ = aligned(architecture, spread=0.3, **options)
    said = logits_of(model, normalise=options.get("guide.normalise", True))(IDS)
    given = model(IDS, alpha=alpha).logits[0].double()
    torch.testing.assert_close(given, said.base + alpha * said.delta, atol=1e-3, rtol=1e-4)
    assert said.delta.std() > 0.1


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.7, "lambda_l2": 0.3}, {"reference_free": True}, {"lambda_l2": 0.0, "kl.weight": 2.0}]
)
def test_the_full_loss(options):
    model, step = aligned(**{"guide.width": 8, **options})
    known = {"beta": 0.1, "lambda_l2": 0.001, **options}
    known["lambda_kl"] = known.pop("kl.weight", 0.0)
    by_hand, out = expected(logits_of(model), **known), step(**BATCH)
    assert out["loss"].item() == pytest.approx(by_hand["loss"], rel=1e-5)
    for name in ("preference", "kl", "norm"):
        assert out[name].mean().item() == pytest.approx(by_hand[name], rel=1e-3), name


def test_the_papers_numbers_are_the_defaults(tmp_path):
    options, training, _ = build_parser(method("mav")).read(
        ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]
    )
    assert (training.learning_rate, training.num_train_epochs, options.max_length) == (1e-4, 1, 512)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 2)
    chosen = dict(method("mav").options())
    assert (chosen["preference.beta"], chosen["norm.weight"], chosen["kl.weight"]) == (0.1, 0.001, 0.0)
    assert (chosen["preference.through"], chosen["preference.reference_free"]) == ("policy", False)
    assert chosen["guide.normalise"] is True


def test_one_forward_of_the_backbone_trains_it_and_leaves_it_alone():
    model, step = aligned("llama_tied")
    calls, own = [], tiny_lm("llama_tied").eval()
    model.backbone.lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.AdamW(model.guides.parameters(), lr=0.05)
    step(**BATCH)["loss"].backward()
    assert calls == [1]
    assert all(p.grad is not None and p.grad.any() for p in model.guides.parameters())
    optimizer.step()
    after = model.backbone.lm.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in own.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IDS, alpha=0.0).logits, own(IDS).logits)


def test_the_model_of_the_seed(backbone_folder):
    model = MAVModel.from_backbone(str(backbone_folder))
    assert {name: guide.config for name, guide in model.guides.items()} == {"mav": MultilayerConfig()}
    text = {"tokenizer": word_tokenizer(), "max_new_tokens": 8, "do_sample": False}
    fresh = model.generate("ask1 how", alpha=1.0, **text)
    assert fresh == model.generate("ask1 how", alpha=0.0, **text)
    torch.manual_seed(0)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert model.generate("ask1 how", alpha=1.0, **text) != fresh
    named = MAVModel.from_backbone(str(backbone_folder), guide=MultilayerConfig(width=8))
    assert named.guide("mav").width == 8
