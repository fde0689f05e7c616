"""Guides on the command line: put together, moved to another backbone, and trained there."""

import contextlib
import json
import os
import re

import pytest
import torch
import torch.nn.functional as F
from files import SPECIAL, WORDS, write_adapter, write_backbone, write_classifier, write_guides
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dual_head import AlignedModel
from dual_head.cli import COMMANDS, main
from dual_head.guides.linear import LinearConfig
from dual_head.methods import method, method_names

IDS = torch.tensor([[1, 5, 6, 30, 31, 8], [1, 12, 7, 22, 9, 11]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Backbones, and all that can be composed."""
    place = tmp_path_factory.mktemp("cli")
    write_backbone(place / "backbone", spread=0.2)
    write_backbone(place / "expert", hidden_size=16, seed=1, spread=0.2)
    write_backbone(place / "antiexpert", hidden_size=16, seed=2, spread=0.2)
    write_backbone(place / "wide", hidden_size=48, layers=4, seed=3, spread=0.2)
    write_backbone(place / "swapped", seed=4, words=[*SPECIAL, *WORDS[24:], *WORDS[4:24]], spread=0.2)
    write_classifier(place / "classifier")
    gate = {"num_heads": 2, "head_dim": 4}
    dual_head = method("dual_head").with_options({f"guide.{key}": value for key, value in gate.items()})
    write_guides(place / "helpful", place / "backbone", dual_head.guides(), seed=5, alpha={"dual_head": 0.5})
    write_guides(place / "both", place / "backbone", {"harmless": LinearConfig(), "brief": LinearConfig()}, seed=6)
    write_guides(place / "iav", place / "backbone", {"iav": LinearConfig(rank=2)}, seed=7)
    return place


def run(*arguments, capsys, code: int = 0) -> str:
    """Run a command, and return what it printed (or, when refused, the last line it said)."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err.strip().splitlines()[-1]


def logits_of(folder) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def composed(*arguments, out, capsys) -> AlignedModel:
    said = run("compose", *arguments, "--output_dir", out, capsys=capsys)
    assert re.search(r"\d guides? written to", said)
    return AlignedModel.from_pretrained(out)


# ---- compose -----------------------------------------------------------------------------------------------


def test_two_guides_are_composed_into_a_folder_that_generates(place, tmp_path, capsys):
    sources = [f"helpful={place / 'helpful'}", f"harmless={place / 'both'}:harmless"]
    model = composed(*sources, "--alpha", "harmless=0.2", out=tmp_path, capsys=capsys)
    assert model.config.alpha == {"helpful": 0.5, "harmless": 0.2}  # the one as trained, the other as said
    base = logits_of(place / "backbone")
    helpful = AlignedModel.from_pretrained(place / "helpful")(IDS, alpha=1.0).logits - base
    harmless = AlignedModel.from_pretrained(place / "both")(IDS, alpha={"harmless": 1.0}).logits - base
    torch.testing.assert_close(model(IDS).logits, base + 0.5 * helpful + 0.2 * harmless, **CLOSE)
    options = ["--prompt", "ask0", "--alpha", "helpful=0.8,harmless=-0.2", "--max_new_tokens", 3]
    assert run("generate", tmp_path, *options, capsys=capsys).strip()
    assert run("generate", tmp_path, *options[:2], "--alpha", "helpfull=1", capsys=capsys, code=2).endswith(
        "'helpful'?"
    )


def test_one_strength_is_every_guides(place, tmp_path, capsys):
    model = composed(f"a={place / 'helpful'}", f"b={place / 'iav'}", "--alpha", -1.5, out=tmp_path, capsys=capsys)
    assert model.config.alpha == {"a": -1.5, "b": -1.5}


def test_a_tuned_model_is_a_guide(place, tmp_path, capsys):
    model = composed(
        f"tuned={place / 'expert'}", "--model_name_or_path", place / "backbone", out=tmp_path, capsys=capsys
    )
    base, tuned = logits_of(place / "backbone"), logits_of(place / "expert")
    for alpha in (1.0, 0.3):
        torch.testing.assert_close(model(IDS, alpha=alpha).logits, base + alpha * (tuned - base), **CLOSE)


def test_an_adapter_is_a_guide(place, tmp_path, capsys):
    pytest.importorskip("peft")
    write_adapter(tmp_path / "adapter", place / "backbone")
    sources = [f"tuned={tmp_path / 'adapter'}", f"other={place / 'iav'}"]  # the backbone is the second's
    model = composed(*sources, out=tmp_path / "out", capsys=capsys)
    lm = AutoModelForCausalLM.from_pretrained(place / "backbone")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, a in weights.items():
        if "lora_A" in name:
            b = weights[name.replace("lora_A", "lora_B")]
            lm.get_submodule(name.removeprefix("base_model.model.").split(".lora_A")[0]).weight.data += 4 / 2 * b @ a
    tuned = lm(IDS).logits
    assert (tuned - logits_of(place / "backbone")).abs().max() > 0.1
    torch.testing.assert_close(model(IDS, alpha={"tuned": 1.0}).logits, tuned, **CLOSE)


def test_an_expert_less_an_antiexpert_is_a_guide(place, tmp_path, capsys):
    source = f"proxy={place / 'expert'}-minus-{place / 'antiexpert'}"
    model = composed(source, "--model_name_or_path", place / "backbone", out=tmp_path, capsys=capsys)
    delta = logits_of(place / "expert") - logits_of(place / "antiexpert")
    torch.testing.assert_close(model(IDS, alpha=0.7).logits, logits_of(place / "backbone") + 0.7 * delta, **CLOSE)


def test_a_reward_model_is_a_guide(place, tmp_path, capsys):
    source = f"args={place / 'classifier'}"
    model = composed(source, "--model_name_or_path", place / "backbone", out=tmp_path, capsys=capsys)
    classifier = AutoModelForSequenceClassification.from_pretrained(place / "classifier")
    base, said = logits_of(place / "backbone")[0, -1], model(IDS, alpha=0.5).logits[0, -1]
    candidates = base.topk(10).indices
    assert set(said.topk(10).indices.tolist()) == set(candidates.tolist())
    assert (said < -1e9).sum() == len(WORDS) - 10
    for v in candidates:
        reward = classifier(torch.cat([IDS[0], v[None]])[None]).logits[0, 0]
        torch.testing.assert_close(said[v], base[v] + 0.5 * reward, **CLOSE)


def test_system_prompts_are_a_guide(place, tmp_path, capsys):
    """The words before a text, as this tokenizer has no chat template."""
    prompts = ["--positive", "kind=good0 good1", "--negative", "kind=bad0", "--negative", "rude=bad1"]
    onto = ["--model_name_or_path", place / "backbone", "--alpha", "kind=0.5,rude=0"]
    said = run("compose", *prompts, *onto, "--output_dir", tmp_path / "out", capsys=capsys)
    assert "2 guides written" in said
    model, lm = AlignedModel.from_pretrained(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(place / "backbone")
    text = torch.tensor([[5, 6, 30, 31, 8]])
    good, bad = ([1, *(WORDS.index(word) for word in words)] for words in (("good0", "good1"), ("bad0",)))
    base, one, other = (lm(torch.cat([torch.tensor([start]), text], 1)).logits[:, -5:] for start in ([1], good, bad))
    ids = torch.cat([torch.tensor([[1]]), text], 1)
    torch.testing.assert_close(model(ids).logits[:, -5:], base + 0.5 * (one - other), **CLOSE)
    options = ["--prompt", "ask0", "--alpha", "kind=1,rude=0.5", "--max_new_tokens", 3, "--no_stream"]
    assert run("generate", tmp_path / "out", *options, capsys=capsys).strip()
    assert "'kind' cannot be merged" in run(
        "merge", tmp_path / "out", "--output_dir", tmp_path / "merged", capsys=capsys, code=2
    )
    both = composed(f"iav={place / 'iav'}", "--positive", "kind=good0", out=tmp_path / "both", capsys=capsys)
    assert list(both.guides) == ["iav", "kind"]
    record = json.loads((tmp_path / "out" / "compose.json").read_text())
    assert record["prompts"] == {"kind": {"negative": "bad0", "positive": "good0 good1"}, "rude": {"negative": "bad1"}}


def test_what_cannot_be_composed_is_refused_with_the_remedy(place, tmp_path, capsys):
    out, helpful, onto = tmp_path / "out", place / "helpful", ["--model_name_or_path", place / "backbone"]
    refused = {
        "is not NAME=SOURCE": [helpful],
        "Two guides have the same name, 'b'": [f"b={helpful}", f"b={helpful}"],
        "is not a model": [f"a={tmp_path}"],
        "Name the backbone": [f"a={place / 'expert'}"],
        "Did you mean 'helpful'?": [f"helpful={helpful}", "--alpha", "helpfull=1"],
        "cannot name a guide": [f"a.b={helpful}"],
        "say which with source_name": [f"a={place / 'both'}"],
        "same sizes but other weights": [f"a={helpful}", "--model_name_or_path", place / "twin"],
        "needs the model": [f"a={place / 'expert'}-minus-{tmp_path / 'gone'}", *onto],
        "reads other tokens than the backbone: 45 of 49": [f"a={place / 'swapped'}", *onto],
        "There is no guide": onto,
        "'kind' is not NAME=TEXT": ["--positive", "kind", *onto],
        "two prompts for 'kind'": ["--negative", "kind=a", "--negative", "kind=b", *onto],
        "Both prompts are the same": ["--positive", "kind=a", "--negative", "kind=a", *onto],
        "no system turn to leave out": ["--negative", "kind=", *onto],
        "Two guides have the same name, 'a'": [f"a={helpful}", "--positive", "a=good0"],
    }
    write_backbone(place / "twin", seed=8)
    for remedy, arguments in refused.items():
        assert remedy in run("compose", *arguments, "--output_dir", out, capsys=capsys, code=2)
    assert not out.exists()


# ---- another backbone --------------------------------------------------------------------------------------


def test_generate_moves_guides_to_another_backbone_and_says_so(place, capsys, caplog):
    options = ["--prompt", "ask0 ask1", "--alpha", 1, "--max_new_tokens", 5, "--no_stream"]
    said = run("generate", place / "helpful", "--backbone", place / "wide", *options, capsys=capsys)
    assert f"Moved the guides of '{place / 'helpful'}' to '{place / 'wide'}': the same tokenizer" in caplog.text
    model = AlignedModel.from_pretrained(place / "helpful")
    model.switch_backbone(place / "wide")
    from dual_head.model.pretrained import load_tokenizer

    tokenizer = load_tokenizer(str(place / "wide"))
    assert said.strip() == model.generate("ask0 ask1", tokenizer=tokenizer, alpha=1.0, max_new_tokens=5).strip()


def test_generate_refuses_other_tokens_and_maps_them_when_asked(place, capsys, caplog):
    options = ["--prompt", "ask0 ask1", "--max_new_tokens", 5, "--no_stream"]
    moved = ["generate", place / "both", "--backbone", place / "swapped"]
    said = run(*moved, *options, capsys=capsys, code=2)
    assert "45 of 49 token ids mean other tokens" in said
    assert "--vocab_map" in said
    assert run(*moved, "--vocab_map", *options, capsys=capsys).strip()
    assert "49 of 49 tokens (100.0%) exist in both" in caplog.text
    assert "switch=True" in run("generate", place / "both", "--vocab_map", *options, capsys=capsys, code=2)


@pytest.fixture
def training(place, pairs_file, tmp_path) -> list:
    """`dual-head train iav` beside the wide backbone, a few steps long."""
    given = {"dataset_name": pairs_file, "output_dir": tmp_path / "out", "max_steps": 3, "learning_rate": 0.05}
    given |= {"model_name_or_path": place / "wide", "disable_tqdm": "true", "rank": 2}
    return ["train", "iav", *(part for key, value in given.items() for part in (f"--{key}", value))]


def test_train_moves_guides_and_trains_only_the_map_in_between(training, place, tmp_path, capsys):
    said = run(*training, "--move_guides", place / "iav", capsys=capsys)
    assert f"{48 * 32:,} parameters to train" in said
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "iav", tmp_path / "out"))
    adapter = after.pop("iav.transfer.adapter.weight")
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert before.keys() == after.keys()
    pooling = F.adaptive_avg_pool1d(torch.eye(48), 32).T
    assert (adapter - pooling).abs().max() > 0.01
    assert json.loads((tmp_path / "out" / "config.json").read_text())["guides"]["iav"]["adapter"] is True
    assert run("generate", tmp_path / "out", "--prompt", "ask0", "--max_new_tokens", 3, capsys=capsys).strip()
    again = os.path.relpath(place / "iav")  # finished, so that nothing is trained again
    run(*training, "--move_guides", again, capsys=capsys)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["iav.transfer.adapter.weight"], adapter)


def test_guides_are_not_moved_to_where_they_are(training, place, capsys):
    onto = ["--model_name_or_path", place / "backbone", "--move_guides", place / "iav"]
    assert "trained on this very backbone" in run(*training, *onto, capsys=capsys, code=2)


def test_a_map_of_tokens_for_guides_that_do_not_move_is_refused(training, capsys):
    assert "--vocab_map is of guides that move" in run(*training, "--vocab_map", capsys=capsys, code=2)


# ---- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *(["train", name] for name in method_names())])
def test_the_help_of_every_command_fits_the_screen(command, capsys):
    with contextlib.suppress(SystemExit):  # as argparse ends after its help
        assert main([*command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: dual-head" in said
    assert max(map(len, said.splitlines())) <= 120
