"""Guides put together on one backbone: each says what it said alone, and nothing else changes."""

import copy

import pytest
import torch
from files import WORDS, forget_checksums, word_tokenizer, write_backbone, write_guides
from safetensors.torch import load_file, save_file

from dual_head import AlignedConfig, AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig

GREEDY = {"do_sample": False, "max_new_tokens": 8}
GATED = RewardHeadConfig(num_heads=2, head_dim=4)
IDS = torch.tensor([[1, 5, 6, 30, 31], [1, 12, 7, 22, 9]])


@pytest.fixture(scope="module")
def folders(backbone_folder, tmp_path_factory):
    """Where guides of three trainings lie: one each of two objectives, and one of two guides."""
    place = tmp_path_factory.mktemp("trained")
    write_guides(place / "helpful", backbone_folder, {"dual_head": GATED}, seed=1)
    write_guides(place / "harmless", backbone_folder, {"iav": LinearConfig()}, seed=2, alpha={"iav": 0.25})
    write_guides(place / "both", backbone_folder, {"gated": GATED, "plain": LinearConfig()}, seed=3)
    return place


@pytest.fixture
def model(backbone_folder) -> AlignedModel:
    """A backbone without guides."""
    return AlignedModel.from_backbone(str(backbone_folder), {}, tokenizer=word_tokenizer())


@pytest.fixture
def composed(model, folders) -> AlignedModel:
    """The same with both objectives' guides."""
    model.attach("helpful", folders / "helpful")
    model.attach("harmless", folders / "harmless")
    return model


def alone(folder, alpha: float = 1.0) -> torch.Tensor:
    """What the guides in a folder make of the logits on their own."""
    return AlignedModel.from_pretrained(folder)(IDS, alpha=alpha).logits


# ---- attach ------------------------------------------------------------------------------------------------


def test_a_trained_guide_says_under_another_name_what_it_said_in_training(model, folders):
    model.attach("helpful", folders / "helpful")
    assert torch.equal(model(IDS, alpha={"helpful": 1.0}).logits, alone(folders / "helpful"))
    assert list(model.guides) == ["helpful"]


def test_a_trained_guide_brings_its_default_strength_unless_one_is_said(model, folders):
    model.attach("as_trained", folders / "harmless")
    model.attach("as_said", str(folders / "harmless"), alpha=-0.5)
    assert model.config.alpha == {"as_trained": 0.25, "as_said": -0.5}
    torch.testing.assert_close(model(IDS).logits, alone(folders / "harmless", -0.25))


def test_a_fresh_guide_changes_no_logit_and_learns(model):
    before = model(IDS).logits
    model.attach("fresh", GATED)
    assert torch.equal(model(IDS).logits, before)
    model(IDS)[0][..., 5].sum().backward()
    assert model.guide("fresh").difference.up.weight.grad.abs().max() > 0


def test_one_guide_of_several_is_named(model, folders):
    for wanted in (None, "other"):
        with pytest.raises(DualHeadError, match=r"say which with source_name \(gated, plain\)"):
            model.attach("one", folders / "both", source_name=wanted)
    model.attach("one", folders / "both", source_name="plain")
    both = AlignedModel.from_pretrained(folders / "both")
    assert torch.equal(model(IDS, alpha=1.0).logits, both(IDS, alpha={"plain": 1.0}).logits)


@pytest.mark.parametrize(
    ("name", "said"),
    [("helpful", "There is a guide 'helpful' already"), ("a b", "cannot name"), ("keys", "cannot name")],
)
def test_a_name_that_is_taken_or_cannot_be_one_is_refused(name, said, composed, folders):
    with pytest.raises(DualHeadError, match=said):
        composed.attach(name, folders / "harmless")


def test_a_guide_of_another_backbone_is_refused(folders, tmp_path):
    other = write_backbone(tmp_path / "other", seed=1)
    model = AlignedModel.from_backbone(str(other), {})
    with pytest.raises(DualHeadError, match=r"same sizes but other weights.*switch_backbone"):
        model.attach("helpful", folders / "helpful")


def test_a_guide_of_another_tokenizer_is_refused(model, backbone_folder, tmp_path):
    other = word_tokenizer([*WORDS[:-2], WORDS[-1], WORDS[-2]])
    write_guides(tmp_path, backbone_folder, {"iav": LinearConfig()}, tokenizer=other)
    with pytest.raises(DualHeadError, match="another tokenizer"):
        model.attach("iav", tmp_path)


def test_a_guide_that_fuses_otherwise_is_refused(model, backbone_folder, tmp_path):
    write_guides(tmp_path, backbone_folder, {"iav": LinearConfig()}, fusion="probabilities")
    with pytest.raises(DualHeadError, match="fuse probabilities, this model logits"):
        model.attach("iav", tmp_path)


@pytest.mark.parametrize("alpha", [[0.5], lambda t: t * 0.5, float("nan")])
def test_a_default_strength_is_one_finite_number(alpha, model, folders):
    with pytest.raises(DualHeadError, match=r"a number, not|NaN"):
        model.attach("helpful", folders / "helpful", alpha=alpha)


def test_what_was_refused_leaves_no_trace(model, folders, tmp_path):
    for file in (folders / "helpful").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    forget_checksums(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("dual_head.causal_gate.output.bias")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    before = model.config.to_dict()
    with pytest.raises(DualHeadError, match="1 tensors differ"):
        model.attach("helpful", tmp_path)
    assert (list(model.guides), model.config.to_dict()) == ([], before)
    model.attach("helpful", folders / "helpful")


def test_the_config_a_model_was_made_with_is_left_alone(folders):
    config = AlignedConfig.from_pretrained(folders / "helpful")
    before = copy.deepcopy(config)
    model = AlignedModel.from_pretrained(folders / "helpful", config=config)
    model.attach("harmless", folders / "harmless")
    assert sorted(model.config.guides) == ["dual_head", "harmless"]
    model.detach("dual_head")
    assert config.to_dict() == before.to_dict()


# ---- detach ------------------------------------------------------------------------------------------------


def test_a_detached_guide_is_gone_and_the_other_speaks_on(composed, folders):
    assert composed.config.cache_layers == 1
    composed.detach("helpful")
    assert (list(composed.guides), composed.config.alpha, composed.config.cache_layers) == (
        ["harmless"],
        {"harmless": 0.25},
        0,
    )
    assert torch.equal(composed(IDS, alpha=1.0).logits, alone(folders / "harmless"))
    composed.attach("helpful", folders / "helpful")  # its name is free again


def test_an_unknown_guide_cannot_be_detached(composed):
    with pytest.raises(DualHeadError, match="Did you mean 'helpful'"):
        composed.detach("helpfull")


# ---- several at once ---------------------------------------------------------------------------------------


def test_attaching_leaves_the_other_guide_as_it_was(model, folders):
    model.attach("helpful", folders / "helpful")
    before, weights = model(IDS, alpha={"helpful": 0.7}).logits, copy.deepcopy(model.stored())
    model.attach("harmless", folders / "harmless")
    model.attach("edit", HiddenConfig(rank=2))
    assert torch.equal(model(IDS, alpha={"helpful": 0.7}).logits, before)
    assert all(torch.equal(model.stored()[name], value) for name, value in weights.items())


def test_strengths_weigh_what_each_guide_adds(composed, folders):
    base = composed(IDS, alpha=0.0).logits
    helpful, harmless = (alone(folders / name) - base for name in ("helpful", "harmless"))
    for one, other in ((0.8, 0.2), (1.0, -1.5), (-0.3, 0.0)):
        said = composed(IDS, alpha={"helpful": one, "harmless": other}).logits
        torch.testing.assert_close(said, base + one * helpful + other * harmless)
    per_row = composed(IDS, alpha={"helpful": [0.8, -1.0], "harmless": [0.2, 2.0]}).logits
    weights = torch.tensor([[[0.8, 0.2]], [[-1.0, 2.0]]])
    torch.testing.assert_close(per_row, base + weights[..., :1] * helpful + weights[..., 1:] * harmless)


def test_composed_guides_decode_with_a_cache_as_without_one(composed, folders):
    composed.attach("again", folders / "both", source_name="gated")
    composed.generation_config.eos_token_id = None
    alpha = {"helpful": [0.8, 0.3], "harmless": -0.5, "again": 1.0}
    for how in ({}, {"num_beams": 3}):
        cached = composed.generate(IDS, alpha=alpha, **GREEDY, **how)
        assert torch.equal(cached, composed.generate(IDS, alpha=alpha, use_cache=False, **GREEDY, **how))


def test_a_guide_nobody_asks_for_is_not_computed(composed, monkeypatch):
    def fail(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(composed.guide("helpful"), "encode", fail)
    composed.generate(IDS, alpha={"harmless": 1.0}, **GREEDY)
    with pytest.raises(AssertionError, match="computed"):
        composed(IDS, alpha={"helpful": 1.0})


def test_what_is_saved_together_is_loaded_together(composed, tmp_path):
    composed.attach("fresh", LinearConfig(rank=2), alpha=3.0)
    composed.save_pretrained(tmp_path)
    loaded = AlignedModel.from_pretrained(tmp_path)
    for alpha in (None, 1.0, {"helpful": 0.8, "harmless": [0.2, -1.0]}):
        assert torch.equal(loaded(IDS, alpha=alpha).logits, composed(IDS, alpha=alpha).logits)
    assert list(loaded.guides) == ["helpful", "harmless", "fresh"]
