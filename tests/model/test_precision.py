"""Guides on their backbone in another precision, taken where that is said; another model is refused with the reason."""

import copy
import json
import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dual_head import AlignedModel, DualHeadError, HiddenConfig
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.probe import Probe, probe
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.world import preference_rows
from dual_head.model.precision import require_other_precision
from dual_head.model.pretrained import load_tokenizer

IDS = torch.tensor([[1, 5, 6, 9]])


def rounded(lm, bits: int):
    """A copy whose matrices keep so many bits, in blocks of 32 between their extremes, as Q4_1 has it."""

    def of(weight):
        x = weight.reshape(-1, 32)
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(1e-9)
        return (((x - low) / step).round() * step + low).reshape(weight.shape)

    return changed(lm, of)


def changed(lm, function):
    """A copy of a model with a function applied to every matrix."""
    lm = copy.deepcopy(lm)
    with torch.no_grad():
        for weight in lm.parameters():
            if weight.dim() > 1:
                weight.copy_(function(weight))
    return lm


def trained_on(lm, texts: list[torch.Tensor], steps: int, learning_rate: float):
    """A copy that was trained for some steps, a text each."""
    lm = copy.deepcopy(lm).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        ids = texts[step % len(texts)]
        lm(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lm.eval()


@pytest.fixture(scope="module")
def toy():
    return AutoModelForCausalLM.from_pretrained(TOY_BACKBONE).eval()


@pytest.fixture(scope="module")
def texts() -> list[torch.Tensor]:
    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    rows = preference_rows(8, seed=0, objective="helpful")
    return [tokenizer(row["prompt"] + row["chosen"], return_tensors="pt").input_ids for row in rows]


@pytest.fixture(scope="module")
def guides(toy, tmp_path_factory):
    """A folder of one random guide of the toy backbone."""
    model = AlignedModel.from_backbone(copy.deepcopy(toy), {"edit": HiddenConfig(rank=4)})
    torch.manual_seed(0)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("precision") / "guides"
    model.save_pretrained(folder)
    return folder


def refusal(guides, lm) -> str:
    with pytest.raises(DualHeadError) as error:
        AlignedModel.from_pretrained(guides, backbone=lm, other_precision=True)
    return str(error.value)


# ---- the probe -----------------------------------------------------------------------------------------------


def test_a_probe_of_the_same_model_diverges_by_nothing_and_reads_back(toy):
    recorded = Probe.from_dict(json.loads(json.dumps(probe(Backbone(toy)).as_dict())))
    assert recorded.divergence(Backbone(toy)) == pytest.approx(0, abs=1e-5)
    assert max(max(row) for row in recorded.ids) < toy.config.vocab_size


def test_the_divergence_is_the_mean_kl_of_the_recorded_tokens_and_all_others(toy):
    decoder, head = Backbone(copy.deepcopy(toy)), toy.lm_head.weight.shape[0]
    with torch.no_grad():
        decoder.lm.lm_head.weight = nn.Parameter(torch.zeros_like(toy.lm_head.weight))  # every token is as likely
    recorded = Probe([[3, 4]], [[[7, 8]]], [[[torch.tensor(0.5).log().item(), torch.tensor(0.25).log().item()]]])
    q = torch.tensor([1 / head, 1 / head, 1 - 2 / head])
    p = torch.tensor([0.5, 0.25, 0.25])
    assert recorded.divergence(decoder) == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)


# ---- loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_guides_run_on_a_backbone_of_fewer_bits_when_they_say_so(toy, guides, bits, caplog):
    lm = rounded(toy, bits)
    with pytest.raises(DualHeadError, match=r"other weights .* say other_precision=True \(--other_precision\)"):
        AlignedModel.from_pretrained(guides, backbone=lm)
    with caplog.at_level(logging.WARNING):
        model = AlignedModel.from_pretrained(guides, backbone=lm, other_precision=True)
    assert "in another precision: weights differ by" in caplog.text
    assert torch.equal(model(IDS, alpha=0.0).logits, lm(IDS).logits)
    assert not torch.equal(model(IDS, alpha=1.0).logits, lm(IDS).logits)


def test_on_bfloat16_nothing_has_to_be_said(toy, guides):
    lm = copy.deepcopy(toy).bfloat16()
    AlignedModel.from_pretrained(guides, backbone=lm)
    require_other_precision(AlignedModel.from_pretrained(guides, backbone=toy).config, Backbone(lm), "guides")


@pytest.mark.parametrize(("steps", "learning_rate"), [(8, 5e-4), (8, 1e-3)])
def test_a_model_that_was_trained_further_is_refused(toy, guides, texts, steps, learning_rate):
    message = refusal(guides, trained_on(toy, texts, steps, learning_rate))
    assert "its next tokens differ by" in message
    assert "trained further" in message


def test_another_seed_other_sizes_and_another_config_are_refused(toy, guides):
    torch.manual_seed(1)
    assert "its weights differ by 1" in refusal(guides, LlamaForCausalLM(toy.config))
    config = copy.deepcopy(toy.config)
    config.num_hidden_layers += 1
    assert f"num_layers {config.num_hidden_layers - 1} against" in refusal(guides, LlamaForCausalLM(config))
    lm = rounded(toy, 8)
    lm.config.rms_norm_eps = 0.5
    assert f"rms_norm_eps {toy.config.rms_norm_eps} against 0.5" in refusal(guides, lm)


def test_where_sizes_differ_the_option_is_not_offered(toy, guides):
    config = copy.deepcopy(toy.config)
    config.num_hidden_layers += 1
    with pytest.raises(DualHeadError) as error:
        AlignedModel.from_pretrained(guides, backbone=LlamaForCausalLM(config))
    assert "other_precision" not in str(error.value)


def test_a_folder_without_a_probe_says_what_is_missing_and_gets_it_when_it_is_saved(toy, guides, tmp_path):
    AlignedModel.from_pretrained(guides, backbone=toy).save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    values = json.loads(file.read_text())
    recorded = values.pop("backbone_probe")
    file.write_text(json.dumps(values))
    assert "save them again with save_pretrained" in refusal(tmp_path / "old", rounded(toy, 4))
    AlignedModel.from_pretrained(tmp_path / "old", backbone=toy).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["backbone_probe"] == recorded
    AlignedModel.from_pretrained(tmp_path / "again", backbone=rounded(toy, 4), other_precision=True)


def test_a_damaged_probe_is_named(toy, guides, tmp_path):
    AlignedModel.from_pretrained(guides, backbone=toy).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["backbone_probe"]["tokens"][0][0][0] = 10**6
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "backbone_probe" in refusal(tmp_path, rounded(toy, 4))


def test_attach_takes_what_the_model_was_built_to_take(toy, guides):
    lm = rounded(toy, 4)
    with pytest.raises(DualHeadError, match="--other_precision"):
        AlignedModel.from_backbone(lm, {}).attach("edit", guides)
    built = AlignedModel.from_backbone(lm, {}, other_precision=True)
    built.attach("edit", guides)
    loaded = AlignedModel.from_pretrained(guides, backbone=lm, other_precision=True)
    assert torch.equal(built(IDS, alpha=1.0).logits, loaded(IDS, alpha=1.0).logits)
    loaded.attach("twice", guides)


def test_guides_are_kept_or_moved_and_not_both(toy, guides):
    with pytest.raises(DualHeadError, match="Choose one"):
        AlignedModel.from_pretrained(guides, backbone=toy, other_precision=True, switch=True)


def test_moved_guides_record_the_backbone_they_were_moved_to(toy, guides, tmp_path):
    lm = rounded(toy, 4)
    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    model = AlignedModel.from_pretrained(guides, backbone=lm, switch=True, tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    recorded = json.loads((tmp_path / "config.json").read_text())["backbone_probe"]
    assert recorded == probe(Backbone(lm)).as_dict()


def test_a_language_model_is_told_from_one_that_was_trained_on(shared_data):
    """The figures of docs/how-to/published_guides.md, on a model of 260 thousand parameters that tells stories."""
    folder = shared_data / "lm" / "stories260k"
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = AlignedModel.from_backbone(copy.deepcopy(lm), {"edit": HiddenConfig(rank=2)})
    model.record_probe()
    for bits in (8, 4):
        require_other_precision(model.config, Backbone(rounded(lm, bits)), "guides")
    tokenizer = load_tokenizer(str(folder))
    texts = [tokenizer("Taxes are due in the second week of the month. " * 3, return_tensors="pt").input_ids]
    for learning_rate in (2e-4, 1e-3):
        with pytest.raises(DualHeadError, match="trained further"):
            require_other_precision(model.config, Backbone(trained_on(lm, texts, 8, learning_rate)), "guides")
