"""Trackers are named alike for guides and classifiers, in flags, YAML and Python; a wrong name is refused at once."""

import importlib.util

import pytest
import yaml
from transformers.integrations import get_available_reporting_integrations

from dual_head.classify.train.trainer import ClassifierTrainingArguments
from dual_head.cli import training as guides
from dual_head.cli.classify import train as classifiers
from dual_head.errors import DualHeadError
from dual_head.methods import method
from dual_head.train.arguments import GuideTrainingArguments, require_trackers

NEEDED = ["--model_name_or_path", "nowhere", "--dataset_name", "none", "--output_dir", "out"]
either = pytest.mark.parametrize("kind", [GuideTrainingArguments, ClassifierTrainingArguments])


def parsed(kind: type, arguments: list[str], config=None) -> list[str]:
    """What --report_to, or the config, is read as by the command that has these arguments."""
    of_guides = kind is GuideTrainingArguments
    parser = guides.build_parser(method("dual_head")) if of_guides else classifiers.build_parser()
    file = [] if config is None else ["--config", str(config)]
    _, training, *_ = parser.read([*NEEDED, *file, *arguments])
    return training.report_to


@either
@pytest.mark.parametrize(
    ("said", "read"),
    [
        (["mlflow", "tensorboard"], ["mlflow", "tensorboard"]),
        (["mlflow,tensorboard"], ["mlflow", "tensorboard"]),
        (["mlflow, tensorboard", "mlflow"], ["mlflow", "tensorboard"]),
        (["none"], []),
        (["all"], get_available_reporting_integrations()),
    ],
)
def test_several_trackers_are_named_with_spaces_or_commas_or_as_a_list(kind, said, read, tmp_path):
    assert parsed(kind, ["--report_to", *said]) == read
    file = tmp_path / "config.yaml"
    for written in (said, ",".join(said)):
        file.write_text(yaml.safe_dump({"report_to": written}))
        assert parsed(kind, [], file) == read
        assert kind(output_dir=str(tmp_path), report_to=written).report_to == read


@either
def test_without_a_word_nothing_is_reported(kind, tmp_path):
    assert parsed(kind, []) == kind(output_dir=str(tmp_path)).report_to == kind(str(tmp_path), report_to=None).report_to
    assert kind(output_dir=str(tmp_path)).report_to == []


@either
@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        ("mlflow,banana", r"unknown tracker 'banana'\. Known: .*mlflow"),
        (["mlflow", "none"], "'none' stands alone"),
        ("all,mlflow", "'all' stands alone"),
    ],
)
def test_a_tracker_that_nobody_has_is_refused_with_the_nearest(kind, said, remedy, tmp_path):
    with pytest.raises(DualHeadError, match=remedy):
        kind(output_dir=str(tmp_path), report_to=said)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("comet_ml", "comet_ml"), ("swanlab", "swanlab")])
def test_a_tracker_that_is_not_installed_is_refused_before_the_run(name, package, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(DualHeadError, match=rf"{name}.* is not installed"):
        require_trackers(GuideTrainingArguments(output_dir=str(tmp_path), report_to=name))


def test_a_store_that_cannot_be_opened_is_refused_before_the_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    args = GuideTrainingArguments(output_dir=str(tmp_path), report_to="mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    with pytest.raises(DualHeadError, match="MLFLOW_ALLOW_FILE_STORE=true"):
        require_trackers(args)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    require_trackers(args)
