"""Real input at small scale: a Llama pretrained by others, pairs written by people. Skipped where they are absent."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, DualHeadModel
from dual_head.cli import main
from dual_head.guides import guide_class
from dual_head.model.generate import encode_prompts


def test_a_guide_is_trained_on_real_pairs_and_generates(shared_data, tmp_path, capsys):
    out = tmp_path / "hh"
    arguments = {
        "model_name_or_path": shared_data / "lm" / "stories260k",
        "dataset_name": shared_data / "hh_rlhf",
        "output_dir": out,
        "max_steps": 4,
        "max_pairs": 120,
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "held_out": 0.2,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    assert main(["train", "dual_head", *flags]) == 0
    assert "rows read" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["rows"]["rows"] == 120
    assert report["held_out"]["next_token"]["pairs"] > 5
    model = DualHeadModel.from_pretrained(str(out))
    tokenizer = AutoTokenizer.from_pretrained(str(shared_data / "lm" / "stories260k"))
    told = model.generate("Once upon a time", tokenizer=tokenizer, max_new_tokens=20, temperature=0.7)
    assert len(told) > 10
    ids = tokenizer("Once upon a time", return_tensors="pt")
    ours = model.generate(**ids, max_new_tokens=20, do_sample=False, alpha=0.0)
    lm = AutoModelForCausalLM.from_pretrained(str(shared_data / "lm" / "stories260k"))
    assert ours.equal(lm.generate(**ids, max_new_tokens=20, do_sample=False))


@pytest.mark.parametrize("kind", ["hidden", "linear", "reward_head"])
def test_alpha_0_gives_the_bits_of_real_weights_loaded_by_themselves(shared_data, kind):
    place = str(shared_data / "lm" / "stories260k")
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    model = AlignedModel.from_backbone(place, {"g": guide_class(kind).Config()}, tokenizer=tokenizer)
    texts = ["Once upon a time", "Tim and Lily went to the park, and", "The dog was sad"]
    greedy = {"do_sample": False, "max_new_tokens": 16, "output_logits": True, "return_dict_in_generate": True}
    for rows in (1, 2, 3):
        batch = encode_prompts(texts[:rows], tokenizer)
        for keep in (0, 1, 4):
            expected = lm(**batch, logits_to_keep=keep).logits
            assert torch.equal(model(**batch, alpha=0.0, logits_to_keep=keep).logits, expected)
        ours, theirs = model.generate(**batch, alpha=0.0, **greedy), lm.generate(**batch, **greedy)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))
