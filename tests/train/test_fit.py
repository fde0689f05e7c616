"""`dual-head train steering`: vectors of one pass over the pairs, by hand, and what the command writes and refuses."""

import json
from statistics import fmean

import pytest
import torch
from files import word_tokenizer
from models import LAYERS, tiny_lm
from torch import Tensor

from dual_head import AlignedModel, DualHeadError, SteeringConfig
from dual_head.cli import main
from dual_head.data import is_held_out
from dual_head.data.collate import PairCollator
from dual_head.methods import method
from dual_head.methods.steering import SteeringFit

ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 2], "rejected_ids": [11, 12, 2]},
    {"prompt_ids": [13, 14], "chosen_ids": [15, 2], "rejected_ids": [16, 17, 18, 19, 2]},
    {"prompt_ids": [20], "chosen_ids": [21], "rejected_ids": [22, 23]},
]


@torch.no_grad()
def differences(layer: int, pool: str) -> Tensor:
    """Chosen less rejected [pairs, d], each reply in a row by itself."""
    lm, kept = tiny_lm("llama").eval(), []
    lm.model.layers[layer - 1].register_forward_hook(lambda _m, _i, output: kept.append(output[0]))

    def of(prompt: list[int], reply: list[int]) -> Tensor:
        lm(torch.tensor([prompt + reply]))
        tokens = kept.pop()[len(prompt) :]
        return tokens.mean(0) if pool == "mean" else tokens[-1]

    return torch.stack([of(x["prompt_ids"], x["chosen_ids"]) - of(x["prompt_ids"], x["rejected_ids"]) for x in ROWS])


def fitted(**options) -> tuple[AlignedModel, dict]:
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"g": SteeringConfig(layers=[1, LAYERS])})
    batches = [PairCollator(0)(ROWS[:2]), PairCollator(0)(ROWS[2:])]
    return model, SteeringFit(**options).fit(model, "g", batches)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_vector_of_a_layer_is_the_mean_difference_of_its_replies(pool):
    model, figures = fitted(pool=pool)
    for layer, vector, figure in zip([1, LAYERS], model.guide("g").vectors, figures["layers"], strict=True):
        expected = differences(layer, pool).mean(0)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)
        along = (differences(layer, pool) @ expected > 0).float().mean().item()
        assert figure == {"layer": layer, "norm": pytest.approx(expected.norm().item()), "pairs_along": along}


def test_the_principal_direction_has_the_length_of_the_mean_along_it():
    model, _ = fitted(direction="pca")
    for layer, vector in zip([1, LAYERS], model.guide("g").vectors, strict=True):
        d = differences(layer, "mean")
        u = torch.linalg.svd(d).Vh[0]
        torch.testing.assert_close(vector, u * (d.mean(0) @ u), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"direction": "svd"}, {"pool": "first"}])
def test_options_that_mean_nothing_are_refused(options):
    (name,) = options
    with pytest.raises(DualHeadError, match=f"{name} must be"):
        SteeringFit(**options)


def test_symbols_are_short_names_of_its_options():
    chosen = method("steering").with_options({"direction": "pca", "pool": "last", "layers": [1], "tokens": "reply"})
    assert chosen.fit == SteeringFit(direction="pca", pool="last")
    assert chosen.guide == SteeringConfig(layers=[1], tokens="reply")


# ---- the command ---------------------------------------------------------------------------------------------


def arguments(backbone, pairs, output, *more) -> list[str]:
    options = {"model_name_or_path": backbone, "dataset_name": pairs, "output_dir": output, "held_out": 0.2}
    return ["train", "steering", *(x for key, value in options.items() for x in (f"--{key}", str(value))), *more]


@pytest.mark.parametrize("tokens", ["all", "reply"])
def test_a_run_writes_vectors_that_generate_and_measures_them_on_held_out_pairs(
    tokens, backbone_folder, pairs_file, tmp_path, capsys
):
    command = arguments(backbone_folder, pairs_file, tmp_path / "out", "--tokens", tokens, "--layers", "[1, 2]")
    assert main(command) == 0
    assert "held-out pairs after one pass" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["layer"] for row in report["fit"]["layers"]] == [1, 2]
    assert all(row["norm"] > 0 and row["pairs_along"] > 0.5 for row in report["fit"]["layers"])
    assert {"accuracy", "margin", "kl"} <= report["held_out"].keys()
    model = AlignedModel.from_pretrained(tmp_path / "out")
    rows = [row for row in map(json.loads, pairs_file.read_text().splitlines()) if is_held_out(row["prompt"], 0.2)]
    scores = {
        side: model.score([x["prompt"] for x in rows], [x[side] for x in rows], alpha=1.0)
        for side in ("chosen", "rejected")
    }
    margins = [0.1 * (a.reward - b.reward) for a, b in zip(scores["chosen"], scores["rejected"], strict=True)]
    assert report["held_out"]["margin"]["mean"] == pytest.approx(fmean(margins), rel=1e-3)
    assert abs(fmean(margins)) > 1e-4
    assert model.config.training["fit"] == {"direction": "mean", "pool": "mean"}
    text = {"tokenizer": word_tokenizer(), "max_new_tokens": 4, "do_sample": False}
    assert isinstance(model.generate("ask1 how", alpha=1.0, **text), str)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(command) == 0  # the same command again computes the same
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--learning_rate", "0.1", "--max_steps", "3"],
            "in one pass over the pairs, not in steps. Leave out",
        ),
        (["--warmup_steps", "2"], "Leave out --warmup_steps"),
        (["--layers", "[9]"], "has layers 1 to 2"),
        (["--guide.kind", "hidden"], "Unknown option 'guide.kind' of steering"),
    ],
)
def test_what_it_has_no_use_for_is_refused(more, message, backbone_folder, pairs_file, tmp_path, capsys):
    assert main(arguments(backbone_folder, pairs_file, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
