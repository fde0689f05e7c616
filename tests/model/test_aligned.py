"""The aligned model as its users meet it: built, saved, loaded, refused, and driven by transformers."""

import argparse
import json
import threading

import pytest
import torch
from files import word_tokenizer, write_backbone
from models import tiny_lm
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor, TextIteratorStreamer

from dual_head import AlignedConfig, AlignedModel, DualHeadError, DualHeadModel, RewardHeadConfig

GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def model(backbone_folder, tokenizer) -> DualHeadModel:
    """A guide with random weights on the tiny backbone on disk."""
    model = DualHeadModel.from_backbone(str(backbone_folder), tokenizer=tokenizer)
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "guides")
    tokenizer.save_pretrained(tmp_path / "guides")
    return tmp_path / "guides"


def test_a_fresh_guide_changes_no_logit_and_then_learns():
    model = DualHeadModel.from_backbone(tiny_lm("llama"))
    ids = torch.randint(3, 97, (2, 6))
    assert torch.equal(model(ids, alpha=1.0).logits, model(ids, alpha=0.0).logits)
    model(ids, alpha=1.0).logits[..., 5].sum().backward()
    assert model.guides["dual_head"].difference.up.weight.grad.abs().max() > 0


def test_auto_classes_load_a_checkpoint(saved, model):
    assert isinstance(AutoConfig.from_pretrained(saved), AlignedConfig)
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([[1, 5, 6]])
    assert isinstance(loaded, AlignedModel)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_checkpoint_holds_the_guides_and_nothing_of_the_backbone(saved):
    files = {file.name for file in saved.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(name.endswith((".bin", ".pt")) for name in files)
    config = json.loads((saved / "config.json").read_text())
    assert config["guides"]["dual_head"]["kind"] == "reward_head"
    assert config["architectures"] == ["DualHeadModel"]


def test_push_to_hub_uploads_what_save_pretrained_writes(model, monkeypatch):
    uploaded = {}

    def upload(self, working_dir, repo_id, files_timestamps, **options):
        from pathlib import Path

        uploaded[repo_id] = {file.name for file in Path(working_dir).iterdir()}

    monkeypatch.setattr("transformers.utils.hub.hf_api", _Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: _Card())
    monkeypatch.setattr(AlignedModel, "_upload_modified_files", upload)
    model.push_to_hub("someone/guides")
    assert {"config.json", "model.safetensors"} <= uploaded["someone/guides"]


class _Hub:
    def create_repo(self, repo_id, **_options):
        """Create nothing."""
        return argparse.Namespace(repo_id=repo_id)


class _Card:
    def save(self, _path):
        """Write no card."""


def test_an_explicit_dtype_is_the_guides_too(saved):
    loaded = DualHeadModel.from_pretrained(str(saved), dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded(torch.tensor([[1, 5]]), alpha=1.0).logits.isfinite().all()


def test_a_loaded_backbone_or_another_place_of_it_will_do(saved, backbone_folder, model):
    ids = torch.tensor([[1, 5, 6]])
    lm = AutoModelForCausalLM.from_pretrained(backbone_folder)
    for backbone in (lm, str(backbone_folder)):
        assert torch.equal(DualHeadModel.from_pretrained(str(saved), backbone=backbone)(ids).logits, model(ids).logits)


def test_options_of_loading_beside_a_loaded_backbone_are_refused():
    lm = tiny_lm("llama")
    with pytest.raises(DualHeadError, match="already loaded, so dtype would do nothing"):
        DualHeadModel.from_backbone(lm, dtype=torch.bfloat16)
    with pytest.raises(DualHeadError, match="already loaded, so revision, dtype would do nothing"):
        DualHeadModel.from_backbone(lm).switch_backbone(lm, revision="main", dtype=torch.bfloat16)


def test_a_wrong_backbone_is_refused_with_what_differs(saved, tmp_path):
    other = write_backbone(tmp_path / "other", seed=1)
    with pytest.raises(DualHeadError, match="same sizes but other weights"):
        DualHeadModel.from_pretrained(str(saved), backbone=str(other))
    wider = write_backbone(tmp_path / "wider", hidden_size=64)
    with pytest.raises(DualHeadError, match="hidden_size 32 against 64"):
        DualHeadModel.from_pretrained(str(saved), backbone=str(wider))


def test_a_backbone_that_moved_is_asked_for(saved):
    config = json.loads((saved / "config.json").read_text())
    config["backbone_name_or_path"] = None
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(DualHeadError, match="backbone=NAME_OR_FOLDER"):
        DualHeadModel.from_pretrained(str(saved))


def test_a_truncated_checkpoint_is_refused_with_the_remedy(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DualHeadError, match=r"not a whole safetensors file.*copy it again"):
        DualHeadModel.from_pretrained(str(saved))


def test_a_folder_without_guides_is_refused(backbone_folder, tmp_path):
    with pytest.raises(DualHeadError, match=r"holds no config\.json"):
        DualHeadModel.from_pretrained(str(tmp_path))
    with pytest.raises(DualHeadError, match="dual-head train"):
        DualHeadModel.from_pretrained(str(backbone_folder))


def test_text_is_read_by_the_tokenizer_beside_the_backbone_that_is_given(tmp_path):
    backbone = write_backbone(tmp_path / "backbone")
    model = AlignedModel.from_backbone(str(backbone), {"g": RewardHeadConfig()}, tokenizer=word_tokenizer())
    model.config.backbone_name_or_path = "an/unknown-name"  # as of guides that were trained on another machine
    model.save_pretrained(tmp_path / "guides")
    loaded = AlignedModel.from_pretrained(tmp_path / "guides", backbone=str(backbone))
    assert isinstance(loaded.generate("ask1 how", max_new_tokens=2), str)


def test_a_wrong_tokenizer_is_refused(model):
    other = word_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(DualHeadError, match="own tokenizer"):
        model.generate("ask0", tokenizer=other)


def test_unknown_options_are_refused_with_the_nearest_name(saved):
    with pytest.raises(DualHeadError, match="Did you mean 'token'"):
        DualHeadModel.from_pretrained(str(saved), tokens="x")
    with pytest.raises(DualHeadError, match="Did you mean 'logits'"):
        DualHeadModel.from_backbone(tiny_lm("llama"), fusion="logit")
    with pytest.raises(ValueError, match="max_new_token"):
        DualHeadModel.from_backbone(tiny_lm("llama")).generate(torch.tensor([[1, 5]]), max_new_token=3)


def test_the_snippet_of_the_seed_gives_text(saved, monkeypatch):
    from transformers import AutoTokenizer

    model = DualHeadModel.from_pretrained(str(saved))
    tokenizer = AutoTokenizer.from_pretrained(str(saved))
    prompt = "how can i ask0 ?"
    torch.manual_seed(0)
    response = model.generate(prompt, tokenizer=tokenizer, max_new_tokens=128, temperature=0.7)
    assert isinstance(response, str)
    assert response


def test_streaming_gives_the_text_piece_by_piece(model, tokenizer):
    model.generation_config.eos_token_id = None
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"tokenizer": tokenizer, "streamer": streamer, **GREEDY}
    thread = threading.Thread(target=lambda: model.generate("ask0 ask1", **options))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces).split() == model.generate("ask0 ask1", tokenizer=tokenizer, **GREEDY).split()


def test_stop_strings_and_logits_processors_are_transformers_own(model, tokenizer):
    model.generation_config.eos_token_id = None

    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            wanted = torch.full_like(scores, -torch.inf)
            wanted[:, 7 + (input_ids.shape[1] > 4)] = 0
            return wanted

    said = model.generate("ask0 ask1", tokenizer=tokenizer, logits_processor=[Only()], **GREEDY)
    words = said.split()
    assert len(set(words)) == 2
    assert len(words) == 8
    stopped = model.generate(
        "ask0 ask1", tokenizer=tokenizer, logits_processor=[Only()], stop_strings=[words[-1]], **GREEDY
    )
    assert stopped.split() == words[: words.index(words[-1]) + 1]


def test_a_cache_filled_while_a_guide_was_off_is_refused(model):
    ids = torch.tensor([[1, 5, 6]])
    cache = model(ids, alpha=0.0, use_cache=True).past_key_values
    with pytest.raises(DualHeadError, match="filled while the guide was off"):
        model(torch.tensor([[7]]), alpha=1.0, past_key_values=cache, use_cache=True)


def test_sampled_returns_and_their_traces_line_up(model):
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    output, trace = model.generate(
        ids, alpha=[1.0, 0.0], do_sample=True, num_return_sequences=2, max_new_tokens=6, return_trace=True
    )
    assert len(output) == len(trace) == 4
    for row, tokens in zip(output, trace, strict=True):
        assert [token.token_id for token in tokens] == row[3 : 3 + len(tokens)].tolist()
    assert all(token.kl == pytest.approx(0, abs=1e-6) for row in trace[2:] for token in row)
    assert max(token.kl for row in trace[:2] for token in row) > 0


def test_probabilities_are_mixed_when_asked(backbone_folder):
    torch.manual_seed(0)
    guide = RewardHeadConfig(gate="constant", gate_value=0.25, init_std=0.5)
    model = DualHeadModel.from_backbone(str(backbone_folder), fusion="probabilities", guide=guide)
    ids = torch.tensor([[1, 5, 6]])
    base = model(ids, alpha=0.0).logits.softmax(-1)
    hidden = model.encode(ids).hidden
    rewarded = (model.backbone.logits(hidden) + model.guides["dual_head"].difference(hidden)).softmax(-1)
    mixed = model(ids, alpha=1.0).logits.softmax(-1)
    torch.testing.assert_close(mixed, 0.75 * base + 0.25 * rewarded)
    with pytest.raises(DualHeadError, match="fusion='logits'"):
        model(ids, alpha=1.5)


def test_paged_caches_are_refused(model):
    with pytest.raises(DualHeadError, match="paged"):
        model.generate(torch.tensor([[1, 5]]), cache_implementation="paged")


def test_hidden_states_and_attentions_come_back_when_asked_for(model):
    ids = torch.tensor([[1, 5, 6]])
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3  # the embedding and two layers
    assert model(ids).hidden_states is None
    generated = model.generate(
        ids, output_hidden_states=True, output_scores=True, return_dict_in_generate=True, **GREEDY
    )
    assert len(generated.hidden_states) == len(generated.scores)


def test_a_trace_leaves_out_the_padding_after_a_stop_string(model, tokenizer):
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    options = {"tokenizer": tokenizer, "do_sample": False, "max_new_tokens": 8}
    whole = model.generate(["ask0 ask1", "ask2"], **options)
    stop = whole[0].split()[1]
    texts, traces = model.generate(["ask0 ask1", "ask2"], stop_strings=[stop], return_trace=True, **options)
    for text, trace in zip(texts, traces, strict=True):
        assert len(trace) == len(text.split())


def test_a_tokenizer_too_large_for_the_backbone_is_refused_at_once(backbone_folder, tokenizer):
    tokenizer.add_tokens(["more"])
    with pytest.raises(DualHeadError, match="own tokenizer"):
        DualHeadModel.from_backbone(backbone_folder, tokenizer=tokenizer)


def test_an_odd_generation_config_of_the_backbone_does_not_stop_saving(model, tmp_path):
    model.generation_config.temperature = 0.6  # beside do_sample=False, as many chat models ship it
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044


@pytest.mark.parametrize(("key", "value"), [("fusion", "logitz"), ("fussion", "logits"), ("guides", {"g": {}})])
def test_a_config_that_was_meddled_with_is_refused(key, value, saved):
    config = json.loads((saved / "config.json").read_text())
    config.pop("fusion")
    (saved / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(DualHeadError, match=r"Did you mean|it lacks 'kind'"):
        DualHeadModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["a.b", "items", "two words"])
def test_a_guide_needs_a_name_that_can_be_one(name, backbone_folder):
    with pytest.raises(DualHeadError, match="cannot name a guide"):
        AlignedModel.from_backbone(backbone_folder, {name: RewardHeadConfig()})


def test_generation_stays_within_the_context_when_no_length_is_said(model):
    assert model.generate(torch.randint(3, 40, (1, 60)), do_sample=False).shape[1] <= 64


def test_generation_prompts_get_no_end_of_sequence(model):
    from tokenizers import processors

    from dual_head.model.generate import encode_prompts

    closing = word_tokenizer()
    both = [("<s>", 1), ("</s>", 2)]
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=both)
    assert encode_prompts(["once upon"], closing)["input_ids"].tolist()[0][0] == 1
    assert 2 not in encode_prompts(["once upon"], closing)["input_ids"].tolist()[0]
