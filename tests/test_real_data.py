"""Real input at small scale: a Llama pretrained by others, pairs written by people. Skipped where they are absent."""

import json

from transformers import AutoTokenizer

from dual_head import DualHeadModel
from dual_head.cli import main


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
    assert ours.equal(model.backbone.lm.generate(**ids, max_new_tokens=20, do_sample=False))
