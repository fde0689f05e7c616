"""The report of a training run: rows of what is trained, no number that is none, and a warning where they are few."""

import io
import json
import math

import pytest
import torch
from rich.console import Console
from transformers.trainer_callback import TrainerState

from dual_head.methods import method
from dual_head.train.report import print_report, summarise, too_few


class Trained:
    """As much of a trainer as a report reads."""

    state = TrainerState(global_step=7)


def report(per_pair: dict[str, list[float]], *, name: str = "hidden", **options) -> dict:
    values = {key: torch.tensor(column) for key, column in per_pair.items()}
    return summarise(Trained, values, method(name).with_options(options), {}, 1.0, {})


def printed(found: dict, tmp_path) -> str:
    stream = io.StringIO()
    print_report(found, tmp_path, Console(file=stream, width=200))
    return stream.getvalue()


def test_what_is_not_trained_has_no_row_but_what_every_method_is_measured_by():
    """Hidden's next-token loss and norm have weight 0 by default; a divergence is measured even so."""
    columns = {key: [1.0, 0.0] for key in ("preference", "accuracy", "kl", "norm", "next_token", "gate_hist_0.1")}
    assert set(report(columns)["held_out"]) == {"preference", "accuracy", "kl"}
    assert "norm" in report(columns, lambda_l2=0.1)["held_out"]
    assert "kl" in report(columns, lambda_kl=0.0)["held_out"]


def test_a_share_has_wilsons_interval():
    found = report({"accuracy": [1.0] * 3 + [0.0]})["held_out"]["accuracy"]
    assert found["mean"] == 0.75
    assert found["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)


def test_a_value_that_is_no_number_leaves_none_in_the_report(tmp_path):
    found = report({"kl": [0.5, math.nan, math.inf], "accuracy": [1.0, 1.0, 1.0]})
    json.dumps(found["held_out"], allow_nan=False)
    said = printed(found, tmp_path)
    assert "finite for 1 of 3 pairs" in said
    assert "nan" not in said.lower()


@pytest.mark.parametrize(("pairs", "told"), [(19, True), (20, False)])
def test_few_held_out_pairs_are_said_to_tell_nothing(pairs, told, tmp_path):
    said = printed(report({"accuracy": [1.0] * pairs}), tmp_path)
    assert ("Only 19 held-out pairs: averages under 20 mean little." in said) is told
    assert "rows" in too_few(3, "rows")


@pytest.mark.parametrize(
    ("kl", "gate", "remedy"),
    [
        (5e-5, [0.3, 0.4], "Train more steps, or raise --learning_rate."),
        (5e-5, [0.001, 0.002], r"gate is closed (mean 0.0015): lower --learning_rate, or use --gate constant."),
        (0.02, [0.001, 0.002], ""),
    ],
)
def test_a_guide_that_leaves_the_backbone_as_it_is_is_told_with_the_remedy(kl, gate, remedy, tmp_path):
    said = printed(report({"kl": [kl, kl], "gate": gate}, name="dual_head"), tmp_path)
    assert ("5.0e-05 nats a token from the backbone" in said) is bool(remedy)
    assert remedy in said
