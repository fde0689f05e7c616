"""Folding: a plain model with the logits of the guided one; and what cannot be folded says why."""

import copy

import pytest
import torch
from models import ARCHITECTURES, HIDDEN, LAYERS, VOCAB, tiny_lm
from torch import nn

from dual_head import AlignedModel, RewardHeadConfig
from dual_head.errors import DualHeadError
from dual_head.export.merge import merge
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig

CAPPED = ("gemma2", "gemma3")  # their cap stands between the lm_head and what a vocabulary guide adds
KINDS = {
    "linear": LinearConfig(),
    "low_rank": LinearConfig(rank=3),
    "constant_gate": RewardHeadConfig(gate="constant", gate_value=0.3, rank=4),
    "hidden": HiddenConfig(rank=4),
}
IDS = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(5))


def guided(architecture="llama", guides=None, *, alpha=None, fusion="logits", spread=0.3) -> AlignedModel:
    """A tiny backbone with guides whose every weight is random."""
    guides = guides or {"g": LinearConfig()}
    model = AlignedModel.from_backbone(tiny_lm(architecture), guides, alpha=alpha, fusion=fusion)
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=spread)
    return model


@torch.no_grad()
def apart(plain, model, **alpha) -> float:
    """The largest difference of logits, in units of the largest logit."""
    ours = model(IDS, **alpha).logits
    assert (ours - model(IDS, alpha=0.0).logits).abs().max() > 0.05 or not model.resolve_alpha(rows=1, **alpha)[0].names
    return ((plain(IDS).logits - ours).abs().max() / ours.abs().max().clamp_min(1)).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_has_the_logits_of_the_guided_one(architecture, kind):
    model = guided(architecture, {"g": KINDS[kind]})
    if architecture in CAPPED and KINDS[kind] != HiddenConfig(rank=4):
        with pytest.raises(DualHeadError, match=r"soft cap does\), and the guide 'g'.*\(kind 'hidden'\), which merges"):
            merge(model)
        return
    for alpha in (1.0, 0.5, -1.0):
        assert apart(merge(model, alpha=alpha), model, alpha=alpha) < 1e-5
    assert apart(merge(model), model, alpha=None) < 1e-5


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in CAPPED])
def test_guides_of_both_spaces_merge_at_their_own_strengths_and_a_third_stays_out(architecture):
    model = guided(architecture, {"a": LinearConfig(), "b": HiddenConfig(rank=4), "off": RewardHeadConfig()})
    alpha = {"a": 0.7, "b": -0.4}
    assert apart(merge(model, alpha=alpha), model, alpha=alpha) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_backbone_keeps_its_bits_and_the_copy_its_own_head_over_the_same_decoder(architecture):
    model = guided(architecture, {"g": HiddenConfig(rank=4)})
    lm = model.backbone.lm
    before, config = copy.deepcopy(lm.state_dict()), lm.config.to_dict()
    merged = merge(model)
    assert type(merged) is type(lm)
    assert merged is not lm
    assert all(torch.equal(before[name], value) for name, value in lm.state_dict().items())
    assert lm.config.to_dict() == config
    theirs = {p.data_ptr() for p in lm.parameters()}
    new = {name for name, p in merged.named_parameters() if p.data_ptr() not in theirs}
    assert new == {"lm_head.weight"} | ({"lm_head.bias"} if architecture == "phi" else set())
    head = merged.get_output_embeddings().weight
    for recompute in (True, False):  # as transformers does after resizing, and after loading
        merged.tie_weights(recompute_mapping=recompute)
        assert merged.get_output_embeddings().weight is head
    merged.to(torch.bfloat16)  # the caller's to do with as they like
    assert next(lm.parameters()).dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_alpha_0_the_head_is_the_backbones(architecture):
    model = guided(architecture)
    merged, lm = merge(model, alpha=0.0), model.backbone.lm
    assert torch.equal(merged.get_output_embeddings().weight, lm.get_output_embeddings().weight)
    assert torch.equal(merged(IDS).logits, lm(IDS).logits)


def test_a_guides_constant_goes_into_the_bias_of_a_head_that_has_one():
    guides = {"a": LinearConfig(bias=True), "b": HiddenConfig(rank=4, bias=True)}
    model = guided("phi", guides)
    assert apart(merge(model, alpha={"a": 0.5, "b": -0.7}), model, alpha={"a": 0.5, "b": -0.7}) < 1e-5


@pytest.mark.parametrize(("architecture", "scale"), [("cohere", 0.25), ("granite", 0.25)])
def test_a_scale_after_the_head_is_divided_out(architecture, scale):
    model = guided(architecture)
    base, merged = model.backbone.lm.get_output_embeddings().weight, merge(model).get_output_embeddings().weight
    torch.testing.assert_close(merged - base, model.guide("g").linear_map()[0] / scale, atol=1e-5, rtol=1e-5)


def moved(kind, *, hidden=HIDDEN, vocab=VOCAB, adapter=False, vocab_map=None) -> AlignedModel:
    """A guide trained on a backbone of other sizes, as a checkpoint of a moved guide describes it."""
    model = guided(guides={"g": kind})
    entry = {"shape": {"hidden_size": hidden, "vocab_size": vocab, "num_layers": LAYERS}}
    entry |= {"adapter": adapter, "vocab_map": vocab_map is not None}
    config = copy.deepcopy(model.config)
    config.guides["g"] |= entry
    model = AlignedModel(config, model.backbone.lm)
    torch.manual_seed(1)
    for parameter in [*model.guides.parameters(), *model.transfers.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    if vocab_map is not None:
        model.transfer("g").vocab_map.copy_(vocab_map)
    return model


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 20},
        {"hidden": 48, "adapter": True},
        {"vocab": 60},
        {"vocab": 50, "vocab_map": torch.arange(VOCAB).flip(0) % 51 - 1},
    ],
    ids=["pooled", "adapted", "fewer_tokens", "mapped_tokens"],
)
def test_a_guide_from_another_backbone_merges_with_what_fits_it_to_this_one(sizes):
    model = moved(LinearConfig(), **sizes)
    assert model.transfer("g") is not None
    assert apart(merge(model), model, alpha=None) < 1e-5


@pytest.mark.parametrize(
    ("guide", "alpha", "fusion", "reason"),
    [
        (RewardHeadConfig(), None, "logits", "guide 'g' cannot be merged.*depends on the text.*gate=constant"),
        (HiddenConfig(gate="attention"), None, "logits", "guide 'g' cannot be merged.*gate=none"),
        (MultilayerConfig(), None, "logits", "guide 'g' cannot be merged.*Multilayer is not a linear map"),
        (LinearConfig(bias=True), None, "logits", "'g' adds a constant.*LlamaForCausalLM has no bias.*bias=false"),
        (LinearConfig(), None, "probabilities", "mixture of distributions.*fusion=logits"),
        (LinearConfig(), [1.0, 0.5], "logits", "one strength for every token and row"),
        (LinearConfig(), {"g": torch.tensor([1.0])}, "logits", "one strength for every token and row"),
        (LinearConfig(), {"g": lambda t: 0.9**t}, "logits", "not a schedule"),
        (LinearConfig(), {"h": 1.0}, "logits", "No guide is named 'h'.*Known: g"),
    ],
)
def test_what_is_no_linear_map_at_one_strength_is_refused(guide, alpha, fusion, reason):
    with pytest.raises(DualHeadError, match=reason):
        merge(guided(guides={"g": guide}, fusion=fusion), alpha=alpha)


class Packed(nn.Linear):
    """As quantised layers are: a Linear by name, whose weight is no matrix of floats."""


def test_a_head_that_is_no_plain_matrix_is_refused():
    model = guided()
    head = model.backbone.lm.lm_head
    model.backbone.lm.lm_head = Packed(HIDDEN, VOCAB, bias=False)
    with pytest.raises(DualHeadError, match=r"it is a Packed.*without quantisation"):
        merge(model)
    model.backbone.lm.lm_head = head
    head.weight = nn.Parameter(head.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(DualHeadError, match="without quantisation"):
        merge(model)


def test_an_adapter_of_peft_is_refused_wherever_it_sits():
    model = guided()
    lora = type("LoraLinear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    model.backbone.lm.model.layers[0].mlp.down_proj = lora(48, HIDDEN)
    with pytest.raises(DualHeadError, match="merge_and_unload"):
        merge(model)


def test_an_offloaded_backbone_is_refused():
    model = guided()
    model.backbone.lm.model.layers[1].to("meta")
    with pytest.raises(DualHeadError, match="without device_map"):
        merge(model)


def test_a_model_that_changes_the_hidden_state_before_its_head_is_refused():
    model = guided(guides={"g": HiddenConfig(rank=4)})
    model.backbone.lm.lm_head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].tanh(),))
    with pytest.raises(DualHeadError, match="between decoder and lm_head"):
        merge(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_short_format_keeps_its_format_and_merges_to_its_rounding(dtype):
    model = guided("granite").to(dtype)
    merged = merge(model, alpha=0.5)
    assert merged.lm_head.weight.dtype == dtype
    assert apart(merged, model, alpha=0.5) < 16 * torch.finfo(dtype).eps


def test_a_head_that_overflows_its_format_is_refused():
    with pytest.raises(DualHeadError, match=r"overflows.*bfloat16 or float32"):
        merge(guided(spread=1e4).to(torch.float16), alpha=100.0)
