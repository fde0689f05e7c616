"""What `dual-head inspect` says a guide costs is what hooks count while it generates; and where it can move."""

import json

import pytest
import torch
from files import SPECIAL, WORDS, word_tokenizer, write_adapter, write_backbone, write_classifier, write_guides
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaModel

from dual_head import AlignedModel, RewardHeadConfig
from dual_head.cli import main
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.prompt_contrast import PromptContrastConfig
from dual_head.guides.reward_model import RewardModelConfig
from dual_head.methods import method, method_names

IDS = torch.tensor([[1, 5, 6, 30]])
# Guides that no method of ours trains as they stand here; {place} is where the models lie.
OTHERS = {
    "gated edit": HiddenConfig(gate="attention", num_heads=2, head_dim=4),
    "low rank": LinearConfig(rank=3, bias=True),
    "model trained in full": LanguageModelConfig(tune="full"),
    "model of its own": LanguageModelConfig(model="{place}/other", tune="none"),
    "LoRA on a model of its own": LanguageModelConfig(model="{place}/other", against="backbone", rank=2),
    "adapter": LanguageModelConfig(model="{place}/adapter", against="backbone", tune="none"),
    "two models": LanguageModelConfig(model="{place}/other", against="{place}/backbone", tune="none"),
    "weak guided": LanguageModelConfig(model="{place}/guides", against="unguided", tune="none"),
    "reward model of its own": RewardModelConfig(model="{place}/classifier", k=4),
    "reward model trained in full": RewardModelConfig(tune="full", k=4),
    "score head": RewardModelConfig(tune="none", k=4),
    "one prompt": PromptContrastConfig(negative=[5, 6]),
    "two prompts": PromptContrastConfig(positive=[7], negative=[5, 6]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, and everything a guide can be made of."""
    pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("inspect")
    write_backbone(place / "backbone")
    write_backbone(place / "other", hidden_size=16, layers=3, seed=1)
    write_backbone(place / "wide", hidden_size=48, layers=4, seed=2)
    write_backbone(place / "swapped", seed=3, words=[*SPECIAL, *WORDS[24:], *WORDS[4:24]])
    write_classifier(place / "classifier")
    write_guides(place / "guides", place / "backbone", {"g": RewardHeadConfig(num_heads=2, head_dim=4)})
    write_guides(place / "edit", place / "backbone", {"g": HiddenConfig()})
    write_guides(place / "prompts", place / "backbone", {"g": PromptContrastConfig(negative=[5, 6])})
    write_adapter(place / "adapter", place / "backbone")
    return place


def said_of(folder, capsys) -> dict:
    capsys.readouterr()
    assert main(["inspect", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def counted(model: AlignedModel) -> tuple[int, int]:
    """Decoders run, and parameters of the modules that ran, in the last step of generating."""
    ran: list[torch.nn.Module] = []
    # Where somebody hooks into the backbone every model runs by itself, so that what is counted is what is computed.
    apart = model.backbone.lm.register_forward_pre_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: ran.clear())
    hook = register_module_forward_hook(lambda module, *_: ran.append(module))
    try:
        model.generate(IDS, alpha=1.0, do_sample=False, max_new_tokens=3, eos_token_id=None)
    finally:
        hook.remove()
        apart.remove()
    decoders = sum(isinstance(module, LlamaModel) for module in ran)
    # What is added between layers is added by hooks, so no module of the guide runs.
    ran += [guide for guide in model.guides.values() if guide.steers_layers]
    return decoders, sum(p.numel() for module in ran for p in module.parameters(recurse=False))


def placed(config, place):
    values = {key: x.format(place=place) if isinstance(x, str) else x for key, x in config.as_dict().items()}
    return type(config).from_dict(values)


def assert_true(said: dict, model: AlignedModel) -> None:
    executed = sum(guide["executed"] for guide in said["guides"].values())
    forwards, parameters = counted(model)
    assert said["forwards_per_token"] == forwards
    assert said["backbone"]["parameters"] + executed == parameters


@pytest.mark.parametrize("name", [*method_names(), *OTHERS])
def test_what_a_guide_costs_is_what_hooks_count(name, place, tmp_path, capsys):
    guides = {"g": placed(OTHERS[name], place)} if name in OTHERS else method(name).guides()
    write_guides(tmp_path, place / "backbone", guides)
    model = AlignedModel.from_pretrained(tmp_path)
    said = said_of(tmp_path, capsys)
    assert_true(said, model)
    trained = sum(p.numel() for p in model.guides.parameters())
    assert sum(guide["trained"] for guide in said["guides"].values()) == trained


def test_guides_together_cost_what_each_does(place, tmp_path, capsys):
    guides = {"one": method("dual_head").guide, "other": method("genarm").guide, "base_head": LinearConfig()}
    write_guides(tmp_path, place / "backbone", guides)
    assert_true(said_of(tmp_path, capsys), AlignedModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("adapter", [False, True])
def test_a_moved_guide_costs_its_adapter_too(adapter, place, tmp_path, capsys):
    model = AlignedModel.from_pretrained(place / "guides", backbone=place / "wide", switch=True, adapter=adapter)
    model.save_pretrained(tmp_path)
    said = said_of(tmp_path, capsys)
    assert_true(said, model)
    before = said_of(place / "guides", capsys)["guides"]["g"]["trained"]
    # Trained is the adapter where there is one: the guide itself stays as it is.
    assert said["guides"]["g"]["trained"] == (48 * 32 if adapter else before)
    assert said["guides"]["g"]["executed"] == before + adapter * 48 * 32


def test_a_map_of_tokens_is_stored_and_no_parameter(place, tmp_path, capsys):
    options = {"backbone": place / "swapped", "switch": True, "vocab_map": True}
    AlignedModel.from_pretrained(place / "guides", **options).save_pretrained(tmp_path)
    guide = said_of(tmp_path, capsys)["guides"]["g"]
    assert guide["stored"] == guide["trained"] + len(WORDS)


# ---- --against ---------------------------------------------------------------------------------------------


def against(*arguments, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["inspect", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_where_guides_can_move_is_said_with_what_will_happen(place, capsys):
    code, said = against(place / "guides", "--against", place / "wide", capsys=capsys)
    assert code == 0
    assert said.splitlines() == [
        f"compatible: the same tokenizer ({len(WORDS)} tokens)",
        "g: width 48 -> 32 (pooled), layers matched by depth (4 here, 2 there), 49 logits here, 49 there",
    ]
    code, said = against(place / "guides", "--against", place / "backbone", capsys=capsys)
    assert (code, "g: fits as it is" in said) == (0, True)
    code, said = against(place / "prompts", "--against", place / "wide", capsys=capsys)
    assert (code, "g: it runs the backbone itself, so this one from then on" in said) == (0, True)


def test_where_guides_cannot_move_is_said_with_why(place, capsys):
    code, said = against(place / "guides", "--against", place / "swapped", capsys=capsys)
    assert code == 1
    assert said.startswith("not compatible: ")
    assert "45 of 49 token ids mean other tokens (for example 4: 'good0' there, 'ask4' here" in said
    assert "--vocab_map" in said
    code, said = against(place / "edit", "--against", place / "wide", "--json", capsys=capsys)
    assert (code, json.loads(said)["compatible"]) == (1, False)
    assert "edits hidden states of width 32" in json.loads(said)["because"]


def test_a_map_of_tokens_makes_guides_compatible(place, capsys):
    code, said = against(place / "guides", "--against", place / "swapped", "--vocab_map", capsys=capsys)
    assert code == 0
    assert "49 of 49 tokens (100.0%) exist in both" in said


def test_a_map_of_tokens_without_a_backbone_to_move_to_is_refused(place, capsys):
    assert main(["inspect", str(place / "guides"), "--vocab_map"]) == 2
    assert "--vocab_map is of a comparison, and none is made here. Add --against" in capsys.readouterr().err


def test_what_cannot_be_read_is_refused_with_the_remedy(place, tmp_path, capsys):
    assert main(["inspect", str(place / "guides"), "--against", str(tmp_path)]) == 2
    assert "Could not load a tokenizer" in capsys.readouterr().err
    word_tokenizer().save_pretrained(tmp_path)
    assert main(["inspect", str(place / "guides"), "--against", str(tmp_path)]) == 2
    assert "Could not read the config of the model" in capsys.readouterr().err


def test_people_read_it_as_tables(place, capsys):
    code, said = against(place / "guides", capsys=capsys)
    assert code == 0
    assert "forwards per token" in said
    assert "g: bias=False, gate=attention" in said
