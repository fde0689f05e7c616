"""delta = W_2 relu(W_1 relu(W_f [pool(norm(h^1)); ...])), by hand; which layers it reads, and how large it is."""

import math

import pytest
import torch
from models import HIDDEN, LAYERS, VOCAB, guided_lm

from dual_head import AlignedModel, DualHeadError
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.multilayer import Multilayer, MultilayerConfig

SMALL = BackboneShape(hidden_size=2, vocab_size=2, num_layers=2)


def multilayer(shape: BackboneShape = SMALL, seed: int = 0, **options) -> Multilayer:
    torch.manual_seed(seed)
    return Multilayer(MultilayerConfig(**options), shape)


def layers_of(num_layers: int, **options) -> list[int]:
    return list(multilayer(BackboneShape(2, 2, num_layers), **options).hidden_layers)


def delta(guide: Multilayer, layers: dict[int, torch.Tensor]) -> torch.Tensor:
    hidden = next(iter(layers.values()))
    return guide.logit_delta(guide.encode(Features(hidden, layers), None), None)


def random_layers(guide: Multilayer, scale: float = 1.0) -> dict[int, torch.Tensor]:
    torch.manual_seed(1)
    return {i: scale * torch.randn(2, 3, guide.shape.hidden_size) for i in guide.hidden_layers}


# ---- the equation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
def test_layers_are_normalised_pooled_fused_and_mapped(normalise):
    custom = {"layers": "custom", "layer_indices": [0, 2]}
    guide = multilayer(**custom, width=1, mlp_width=2, normalise=normalise)
    guide.fusion.weight.data, guide.fusion.bias.data = torch.tensor([[2.0, -1.0]]), torch.tensor([0.5])
    guide.mlp.weight.data, guide.mlp.bias.data = torch.tensor([[1.0], [-3.0]]), torch.tensor([0.25, 4.0])
    guide.head.up.weight.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    guide.head.up.bias.data = torch.tensor([0.0, 10.0])
    first, last = [3.0, 4.0], [1.0, -2.0]
    scales = [math.sqrt((a * a + b * b) / 2) if normalise else 1.0 for a, b in (first, last)]
    u = [sum(layer) / 2 / scale for layer, scale in zip((first, last), scales, strict=True)]
    fused = max(0.0, 2 * u[0] - u[1] + 0.5)
    inner = [max(0.0, fused + 0.25), max(0.0, -3 * fused + 4)]
    by_hand = [inner[0] + 2 * inner[1], -inner[1] + 10]
    output = delta(guide, {0: torch.tensor([[first]]), 2: torch.tensor([[last]])})
    assert output[0, 0].tolist() == pytest.approx(by_hand, rel=1e-5)


def test_all_three_steps_bend():
    """Below zero the fusion and the MLP are silent, and only the bias of the head is left."""
    guide = multilayer(width=1, mlp_width=1)
    guide.fusion.weight.data.fill_(1.0), guide.fusion.bias.data.fill_(-100.0)
    assert guide.encode(Features(torch.ones(1, 1, 2), random_layers(guide)), None)["fused"].sum() == 0
    guide.fusion.bias.data.fill_(100.0)
    guide.mlp.weight.data.fill_(-1.0), guide.head.up.weight.data.fill_(1.0)
    guide.head.up.bias.data = torch.tensor([5.0, 7.0])
    assert delta(guide, random_layers(guide)).tolist() == [[[5, 7]] * 3] * 2


@pytest.mark.parametrize("scale", [0.1, 1e3])
def test_the_scale_of_a_layer_does_not_matter(scale):
    guide = multilayer(BackboneShape(8, 5, 3), width=4)
    torch.nn.init.normal_(guide.head.up.weight)
    layers = random_layers(guide)
    louder = {**layers, 2: scale * layers[2]}
    torch.testing.assert_close(delta(guide, louder), delta(guide, layers), atol=1e-3, rtol=1e-3)
    raw = multilayer(BackboneShape(8, 5, 3), width=4, normalise=False)
    torch.nn.init.normal_(raw.head.up.weight)
    assert not torch.allclose(delta(raw, louder), delta(raw, layers), atol=1e-2)


def test_a_layer_of_half_precision_is_normalised_in_fp32():
    guide = multilayer(BackboneShape(8, 5, 3), width=4)
    layers = {i: x.to(torch.bfloat16) for i, x in random_layers(guide, 1e18).items()}
    fused = guide.encode(Features(layers[1], layers), None)["fused"]
    wide = {i: x.float() for i, x in layers.items()}
    assert fused.any()
    assert torch.equal(fused, guide.encode(Features(wide[1], wide), None)["fused"])
    assert delta(guide.to(torch.bfloat16), layers).dtype == torch.bfloat16


def test_dropout_acts_while_training_only():
    guide = multilayer(BackboneShape(8, 5, 3), width=64, dropout=0.5).train()
    layers = random_layers(guide)
    fused = [guide.encode(Features(layers[1], layers), None)["fused"] for _ in range(2)]
    assert not torch.equal(*fused)
    guide.eval()
    fused = [guide.encode(Features(layers[1], layers), None)["fused"] for _ in range(2)]
    assert torch.equal(*fused)


@torch.no_grad()
def test_in_a_model_it_reads_the_backbones_own_hidden_states():
    model = guided_lm({"mav": MultilayerConfig(layers="custom", layer_indices=[0, 1, -1], width=8)})
    ids = torch.randint(3, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    hidden_states = model.backbone.lm(ids, output_hidden_states=True).hidden_states
    expected = hidden_states[-1] @ model.backbone.lm.lm_head.weight.T + 0.5 * delta(
        model.guide("mav"), dict(enumerate(hidden_states))
    )
    torch.testing.assert_close(model(ids, alpha=0.5).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_backbone_keeps_only_the_layers_it_reads(monkeypatch):
    custom = MultilayerConfig(layers="custom", layer_indices=[1])
    model = guided_lm({"mav": custom, "other": MultilayerConfig(layers="custom", layer_indices=[-1])})
    calls, forward = [], model.backbone.forward
    monkeypatch.setattr(
        model.backbone, "forward", lambda *args, layers, **kwargs: calls.append(layers) or forward(*args, layers=layers)
    )
    for alpha in ({"mav": 1.0}, {"other": 1.0}, 1.0, 0.0):
        model(torch.tensor([[5, 6]]), alpha=alpha)
    assert calls == [(1,), (2,), (1, 2), ()]


# ---- which layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "options", "chosen"),
    [
        (32, {}, [1, 16, 32]),
        (3, {}, [1, 2, 3]),
        (2, {}, [1, 2]),
        (1, {}, [1]),
        (32, {"layers": "uniform", "num_layers": 2}, [1, 32]),
        (32, {"layers": "uniform", "num_layers": 1}, [1]),
        (12, {"layers": "uniform", "num_layers": 4}, [1, 5, 8, 12]),  # 1, 4.67, 8.33, 12
        (4, {"layers": "uniform", "num_layers": 9}, [1, 2, 3, 4]),
        (4, {"layers": "custom", "layer_indices": [3, 0]}, [0, 3]),
        (4, {"layers": "custom", "layer_indices": [-1, -5, 2]}, [0, 2, 4]),
        (4, {"layers": "custom", "layer_indices": [4, -1]}, [4]),
    ],
)
def test_layers_are_chosen_as_asked(num_layers, options, chosen):
    guide = multilayer(BackboneShape(2, 2, num_layers), **options)
    assert list(guide.hidden_layers) == chosen
    assert guide.fusion.in_features == len(chosen) * guide.width


@pytest.mark.parametrize("options", [{}, {"layers": "uniform"}, {"layers": "custom", "layer_indices": [0]}])
def test_every_choice_of_layers_can_be_attached_to_a_backbone(options):
    model = guided_lm({"mav": MultilayerConfig(**options)})
    logits = model(torch.tensor([[5, 6, 7]]), alpha=1.0).logits
    assert (logits - model(torch.tensor([[5, 6, 7]]), alpha=0.0).logits).abs().max() > 0.1


@pytest.mark.parametrize("index", [5, -6])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(index):
    message = rf"layer_indices \[0, {index}\] do not fit a backbone of 4 layers: 0 \(the embedding\) to 4, or -5 to -1"
    with pytest.raises(DualHeadError, match=message):
        layers_of(4, layers="custom", layer_indices=[0, index])


def test_a_layer_that_is_not_there_is_refused_when_it_is_attached():
    with pytest.raises(DualHeadError, match=f"do not fit a backbone of {LAYERS} layers"):
        guided_lm({"mav": MultilayerConfig(layers="custom", layer_indices=[LAYERS + 1])})


# ---- a fresh guide -----------------------------------------------------------------------------------------


def test_a_fresh_guide_adds_exactly_nothing_and_learns_at_once():
    guide = multilayer(BackboneShape(8, 5, 3))
    fresh = delta(guide, random_layers(guide))
    assert not fresh.any()
    fresh.log_softmax(-1)[..., 0].sum().backward()
    assert guide.head.up.weight.grad.any()


def test_it_needs_no_cache_and_no_gate():
    guide = multilayer()
    states = guide.encode(Features(torch.randn(1, 1, 2), random_layers(guide)), None)
    assert (guide.cache_layers, guide.gate_logit(states), guide.gate(states), guide.space) == (0, None, 1, "vocabulary")
    with pytest.raises(DualHeadError, match="not a linear map of the hidden state, so it cannot be merged"):
        guide.linear_map()


# ---- sizes -------------------------------------------------------------------------------------------------


def parameters(shape: BackboneShape, **options) -> int:
    with torch.device("meta"):
        guide = multilayer(shape, **options)
    assert all(p.is_meta for p in guide.parameters())
    return sum(p.numel() for p in guide.parameters())


def test_at_7b_it_is_as_large_as_published():
    fusion, mlp, head = 3 * 4096 * 4096 + 4096, 4096 * 16384 + 16384, 16384 * 32000 + 32000
    assert parameters(BackboneShape(4096, 32000, 32)) == fusion + mlp + head == 641_780_992


@pytest.mark.parametrize(
    ("hidden", "options", "count"),
    [
        (8, {}, (3 * 8 * 8 + 8) + (8 * 16 + 16) + (16 * 5 + 5)),
        (8, {"width": 4}, (3 * 4 * 4 + 4) + (4 * 8 + 8) + (8 * 5 + 5)),
        (8, {"width": 4, "mlp_width": 6}, (3 * 4 * 4 + 4) + (4 * 6 + 6) + (6 * 5 + 5)),
        (8, {"rank": 2}, (3 * 8 * 8 + 8) + (8 * 16 + 16) + 2 * (16 + 5) + 5),
        (8, {"layers": "uniform", "num_layers": 2}, (2 * 8 * 8 + 8) + (8 * 16 + 16) + (16 * 5 + 5)),
    ],
)
def test_sizes_of_the_variants(hidden, options, count):
    assert parameters(BackboneShape(hidden, 5, 6), **options) == count


def test_its_weights_fit_a_backbone_of_any_width():
    one, other = multilayer(BackboneShape(8, 5, 3), width=4), multilayer(BackboneShape(12, 5, 3), 1, width=4)
    other.load_state_dict(one.state_dict())
    assert delta(other, random_layers(other)).shape == (2, 3, 5)


def test_a_backbone_wider_than_4096_is_pooled_to_4096():
    with torch.device("meta"):
        assert multilayer(BackboneShape(8192, 5, 80)).width == 4096
        assert multilayer(BackboneShape(HIDDEN, 5, 80)).width == HIDDEN


# ---- options -----------------------------------------------------------------------------------------------


def test_options_round_trip(tmp_path):
    config = MultilayerConfig(layers="custom", layer_indices=[0, -1], width=8, rank=2, normalise=False)
    assert MultilayerConfig.from_dict(config.as_dict()) == config
    model = guided_lm({"mav": config})
    model.save_pretrained(tmp_path)
    loaded = AlignedModel.from_pretrained(tmp_path, backbone=model.backbone.lm)
    assert loaded.guide("mav").config == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": "auto"}, "Unknown option 'layer' for MultilayerConfig. Did you mean 'layers'?"),
        ({"layers": "all"}, "must be one of 'auto', 'uniform', 'custom', not 'all'"),
        ({"layers": "custom"}, "layer_indices goes with layers=custom: give both, or neither"),
        ({"layer_indices": [1]}, "layer_indices goes with layers=custom"),
        ({"layers": "custom", "layer_indices": []}, "layer_indices goes with layers=custom"),
        ({"layers": "uniform", "num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"width": 0}, "width must be at least 1"),
        ({"mlp_width": 0}, "mlp_width must be at least 1"),
        ({"rank": 0}, "rank must be at least 1, or null for a full one, not 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), not -0.1"),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(options, said):
    with pytest.raises(DualHeadError, match=said):
        MultilayerConfig.from_dict(options)


def test_a_wrong_choice_of_layers_is_refused_in_python_too():
    with pytest.raises(DualHeadError, match="layers must be 'auto', 'uniform' or 'custom', not 'all'"):
        MultilayerConfig(layers="all")
