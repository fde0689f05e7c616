"""`dual-head classify export`: what it writes, says and refuses."""

import json
from pathlib import Path

import pytest
import torch
from files import word_tokenizer, write_backbone
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dual_head.classify.calibration import Calibration
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.cli import main


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone"), spread=0.2)


def write_classifier(folder: Path, backbone: Path, **options) -> Path:
    model = DualHeadReasoningModel.from_backbone(backbone, labels=["no", "yes"], **options)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(backbone, tmp_path_factory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"), backbone, head="linear")


def run(*arguments) -> int:
    return main(["classify", "export", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return capsys.readouterr().err


def test_the_command_writes_a_checkpoint_and_says_how_to_load_it(classifier, tmp_path, capsys):
    Calibration(temperature=1.25).save(classifier)
    assert run(classifier, "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "LlamaForSequenceClassification" in said
    assert "differ by at most" in said
    assert "Divide the logits by 1.25" in said
    assert f'pipeline("text-classification", "{tmp_path / "out"}")' in said
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["good1 ask2"], return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    own = DualHeadReasoningModel.from_pretrained(classifier)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, own(**batch).logits, atol=1e-5, rtol=1e-5)


def test_weights_come_in_the_dtype_asked_for(classifier, tmp_path):
    assert run(classifier, "--output_dir", tmp_path / "out", "--dtype", "bfloat16") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_bad_input_is_one_paragraph_and_nothing_is_written(classifier, backbone, tmp_path, capsys):
    mlp = write_classifier(tmp_path / "mlp", backbone, head="mlp")
    out = tmp_path / "out"
    cases = {
        "--head linear": [mlp],
        "Leave --dtype out": [classifier, "--onnx", "--dtype", "bfloat16"],
        "does not exist": [classifier, "--backbone", tmp_path / "nowhere"],
        "is an input of this command": [classifier, "--output_dir", classifier, "--overwrite"],
        "not empty": [classifier, "--output_dir", mlp],
    }
    for remedy, arguments in cases.items():
        assert remedy in refused(capsys, "--output_dir", out, *arguments)
    assert not out.exists()


def test_a_head_that_fits_no_checkpoint_does_not_wait_for_the_backbone(backbone, tmp_path, capsys, monkeypatch):
    mlp = write_classifier(tmp_path / "mlp", backbone, head="mlp")
    monkeypatch.setattr(DualHeadReasoningModel, "from_pretrained", lambda *_, **__: pytest.fail("it loaded"))
    assert "--onnx" in refused(capsys, mlp, "--output_dir", tmp_path / "out")


def test_onnx_goes_into_the_folder_as_model_onnx(classifier, tmp_path, capsys, monkeypatch):
    import dual_head.classify.export.onnx as onnx
    from dual_head.classify.export.plain import Exported

    given = []

    def exported(model, tokenizer, file, **options):
        given.append((file, options))
        return Exported("ONNX", 1, 0.0)

    monkeypatch.setattr(onnx, "export_onnx", exported)
    (classifier / "calibration.json").unlink(missing_ok=True)
    assert run(classifier, "--output_dir", tmp_path / "out", "--onnx") == 0
    assert given == [(tmp_path / "out" / "model.onnx", {"overwrite": False, "temperature": 1.0})]
    assert "InferenceSession" in capsys.readouterr().out


def test_help_fits_the_screen(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 110
