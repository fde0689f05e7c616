"""The classifier's trainer: one device for a process, and what it logs is of the steps that were taken."""

import math
from functools import cached_property
from pathlib import Path

import pytest
import torch
from models import tiny_lm
from transformers import TrainingArguments

from dual_head.classify.data.tokenize import Tokenized
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.train.trainer import ClassifierTrainer, ClassifierTrainingArguments
from dual_head.errors import DualHeadError
from dual_head.train.arguments import GuideTrainingArguments

ROWS = [Tokenized([5 + i, 7], [9, 4 + i], [False, True, True, True], i % 2, i) for i in range(8)]


def trainer(folder: Path, **options) -> ClassifierTrainer:
    torch.manual_seed(0)
    model = DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 2, dropout=0.0, tune="full")
    given = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "disable_tqdm": True, "use_cpu": True, **options}
    args = ClassifierTrainingArguments(output_dir=str(folder), **{"eval_strategy": "no", **given})
    return ClassifierTrainer(model, args, train_dataset=ROWS, eval_dataset=ROWS)


@pytest.mark.parametrize("kind", [ClassifierTrainingArguments, GuideTrainingArguments])
def test_a_process_with_two_gpus_trains_on_one_of_them(kind, tmp_path, monkeypatch, caplog):
    def two_gpus(self):
        self._n_gpu = 2
        return torch.device("cpu")

    devices = cached_property(two_gpus)
    devices.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", devices)
    args = kind(output_dir=str(tmp_path), per_device_train_batch_size=3)
    assert (args.n_gpu, args.train_batch_size) == (1, 3)
    assert "accelerate launch" in caplog.text


def test_the_first_losses_after_a_resume_are_of_the_steps_since(tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "logging_steps": 2}
    trainer(tmp_path, **options).train()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (row,) = (row for row in again.state.log_history if "loss" in row and row["step"] == 4)
    assert row["loss"] == pytest.approx(row["cls_loss"] + row["lm_loss"], rel=1e-3)
    assert row["cls_loss"] == pytest.approx(math.log(2), rel=0.2)


def test_what_was_measured_of_other_weights_is_measured_again(tmp_path):
    one = trainer(tmp_path, max_steps=2, save_steps=2)
    one.train()
    after = one.evaluate_once()[0]
    one._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert one.held_out is None
    assert torch.equal(one.evaluate_once()[0], after)


def test_options_that_a_classifier_has_no_use_for_are_refused_in_python_too(tmp_path):
    with pytest.raises(DualHeadError, match="label_smoothing_factor has no effect"):
        ClassifierTrainingArguments(str(tmp_path), label_smoothing_factor=0.1)
    ClassifierTrainingArguments(str(tmp_path), neftune_noise_alpha=5.0)  # which guides refuse


def test_losses_are_logged_as_means_over_steps_of_several_batches(tmp_path):
    options = {"max_steps": 2, "logging_steps": 2, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
    whole = trainer(tmp_path / "whole", per_device_train_batch_size=4, **options)
    parts = trainer(tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    logs = []
    for one in (whole, parts):
        one.train()
        logs.append(next(row for row in one.state.log_history if "loss" in row))
    assert logs[0]["cls_loss"] == pytest.approx(logs[1]["cls_loss"], rel=1e-5)
    assert logs[0]["loss"] == pytest.approx(logs[0]["cls_loss"] + logs[0]["lm_loss"], rel=1e-3)
    assert logs[1]["loss"] == pytest.approx(logs[1]["cls_loss"] + logs[1]["lm_loss"], rel=1e-3)
