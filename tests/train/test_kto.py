"""Training on single replies: a batch is its rows, and the command says what cannot be."""

import json
from dataclasses import replace

import pytest
import torch
from models import guided_lm

from dual_head import DualHeadError
from dual_head.cli import main
from dual_head.data.collate import PairCollator
from dual_head.guides.hidden import HiddenConfig
from dual_head.losses.preference import Preference
from dual_head.methods import Method, method
from dual_head.train.step import GuidedLoss

ROWS = [
    {"prompt_ids": [5, 6, 7], "completion_ids": [8, 9, 10, 2], "mismatched_ids": [24], "label": True},
    {"prompt_ids": [13, 14], "completion_ids": [15, 2], "mismatched_ids": [8, 9, 10, 2], "label": False},
    {"prompt_ids": [20, 21], "completion_ids": [24], "mismatched_ids": [15, 2], "label": True},
]

BETA = 0.1  # the method's


def step_of(config: HiddenConfig) -> GuidedLoss:
    chosen = replace(method("kto"), guide=config)
    return GuidedLoss(guided_lm({"kto": config}, spread=0.3), chosen, guide="kto")


# ---- a step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True], ids=["prompts apart", "prompts shared"])
@pytest.mark.parametrize("gate", ["none", "attention"])
def test_a_reply_has_the_same_reward_in_a_batch_and_alone(gate, share):
    step = step_of(HiddenConfig(gate=gate))
    collate = PairCollator(0, share_prompt=share)
    whole = step(**collate(ROWS))
    alone = [step(**collate([row])) for row in ROWS]
    for name in ("reward", "kl", "norm"):
        torch.testing.assert_close(whole[name], torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-6)
    # The loss from these rewards, of all replies at one divergence.
    sign = torch.tensor([1.0, -1.0, 1.0])
    expected = 1 - (sign * (whole["reward"] - BETA * whole["divergence"])).sigmoid()
    torch.testing.assert_close(whole["kto"], expected)


def with_mismatched(step: GuidedLoss, sign: int) -> list[dict]:
    """The rows, where the policy likes mismatched replies most (1) or least (-1), more than the backbone does."""
    vocabulary = range(3, step.model.backbone.shape.vocab_size)
    every = [{**ROWS[0], "completion_ids": [token]} for token in vocabulary]
    best = vocabulary[(sign * step(**PairCollator(0, share_prompt=True)(every))["reward"]).argmax()]
    return [{**row, "mismatched_ids": [best]} for row in ROWS]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_divergence_is_the_mean_ratio_of_mismatched_replies_and_never_below_zero(sign):
    step, collate = step_of(HiddenConfig()), PairCollator(0, share_prompt=True)
    rows = with_mismatched(step, sign)
    ratio = step(**collate([{**row, "completion_ids": row["mismatched_ids"]} for row in rows]))["reward"].mean() / BETA
    assert sign * ratio > 0.1
    divergence = step(**collate(rows))["divergence"]
    torch.testing.assert_close(divergence, ratio.clamp(min=0).expand(3), rtol=1e-4, atol=1e-6)


def test_the_divergence_moves_the_loss_and_has_no_gradient_of_its_own():
    step, collate = step_of(HiddenConfig()), PairCollator(0, share_prompt=True)
    rows = with_mismatched(step, 1)
    out = step(**collate(rows))
    out["loss"].backward()
    gradients = [x.grad.clone() for x in step.model.guides.parameters()]
    # What the loss's slopes at these margins give, each times the gradient of its reply's reward alone.
    sign, margins = torch.tensor([1.0, -1.0, 1.0]), out["margin"].detach()
    slopes = sign * margins.sigmoid() * (-margins).sigmoid()
    expected = [torch.zeros_like(x) for x in gradients]
    for row, slope in zip(rows, slopes, strict=True):
        step.zero_grad()
        alone = step(**collate([{**row, "label": True, "mismatched_ids": row["completion_ids"]}]))
        alone["loss"].backward()
        own = alone["margin"].detach()
        for total, x in zip(expected, step.model.guides.parameters(), strict=True):
            total += x.grad * slope / (own.sigmoid() * (-own).sigmoid()) / len(rows)
    assert out["divergence"].min() > 0.1
    for x, known in zip(gradients, expected, strict=True):
        torch.testing.assert_close(x, known, rtol=1e-3, atol=1e-6)


# ---- methods ------------------------------------------------------------------------------------------------


def test_objectives_of_pairs_and_of_single_replies_do_not_go_together():
    objectives = (*method("kto").objectives, Preference())
    with pytest.raises(DualHeadError, match="learn from different rows: kto from feedback, preference from pairs"):
        Method(name="both", guide=HiddenConfig(), objectives=objectives)


def test_a_method_says_what_it_learns_from():
    assert method("kto").learns_from == "feedback"
    assert {method(name).learns_from for name in ("hidden", "dual_head", "iav", "dpo", "reward")} == {"pairs"}


# ---- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def train(backbone_folder, tmp_path, capsys):
    """`dual-head train` on rows, with its exit code and what it said."""

    def run(rows, *options, name="kto"):
        file = tmp_path / "rows.jsonl"
        file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        places = ("--model_name_or_path", backbone_folder, "--dataset_name", file, "--output_dir", tmp_path / "out")
        given = ("--max_steps", 2, "--logging_steps", 1, "--disable_tqdm", "true", "--restart", *options)
        code = main(["train", name, *map(str, (*places, *given))])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


def rows(count=24, **columns):
    return [
        {"prompt": f"ask{i % 12} how", "completion": f" {word}{i % 8}", "label": word == "good"} | columns
        for i, word in enumerate(("bad", "good", "good") * (count // 3))
    ]


def test_a_guide_is_trained_on_labelled_replies_and_says_how_many_are_desirable(train, tmp_path):
    code, said = train(rows(), "--held_out", "0.3")
    assert code == 0
    assert "replies to train on" in said
    assert "--undesirable_weight" in said  # twice as many are desirable
    assert "held-out replies after 2 steps" in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["training"]["kto"]["beta"] == 0.1
    assert config["training"]["guide"]["kind"] == "hidden"


@pytest.mark.parametrize("kind", ["linear", "reward_head"])
def test_another_kind_of_guide_is_trained_with_its_own_options(train, tmp_path, kind):
    config = tmp_path / "run.yaml"
    config.write_text(f"method: kto\nguide:\n  kind: {kind}\n  rank: 2\n")
    code, said = train(rows(), "--config", str(config))
    assert code == 0, said
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["guides"]["kto"]["kind"] == kind
    assert written["guides"]["kto"]["config"]["rank"] == 2


def test_scores_are_labels_from_a_threshold_on(train):
    scored = [{"prompt": row["prompt"], "completion": row["completion"], "score": i} for i, row in enumerate(rows())]
    code, said = train(scored, "--label_threshold", "12", "--held_out", "0")
    assert code == 0
    assert "12 desirable, 12 undesirable." in said


def test_pairs_are_taken_apart(train):
    pairs = [{"prompt": f"ask{i}", "chosen": " good1", "rejected": " bad1"} for i in range(8)]
    code, said = train(pairs, "--held_out", "0")
    assert code == 0
    assert "a pair read as two replies, the chosen one desirable (8 times)" in said
    assert "8 desirable, 8 undesirable." in said


def test_labels_that_are_all_equal_are_trained_on_with_a_warning(train):
    code, said = train(rows(label=True), "--held_out", "0")
    assert code == 0
    assert "All labels are equal" in said


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ("", (), "No usable reply"),
        (rows(label="maybe"), (), "rows.jsonl:1: The label must be true or false"),
        ([*rows(), {**rows()[0], "label": 3}], (), "rows.jsonl:25: The label must be true or false"),
        ([{k: v for k, v in row.items() if k != "prompt"} for row in rows()], (), "dropped: no column of a prompt"),
        ([{"prompt": "a", "completion": " b", "score": float("nan")}], ("--label_threshold", "0"), "dropped: no score"),
        (rows(), ("--label_threshold", "0"), "has no score"),
        (rows(), ("--label_threshold", "nan"), "must be a finite number"),
        ([{"prompt": "a", "completion": " b", "score": 1}], (), "--label_threshold"),
        ([{"prompt": "a", "completion": " b"}], (), "A reply by itself has prompt, completion, and label or score"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(train, given, options, said):
    code, shown = train(given, *options)
    assert code != 0
    assert said in shown


def test_a_method_of_pairs_refuses_single_replies_and_their_threshold(train):
    code, said = train(rows(), name="hidden")
    assert code != 0
    assert "single replies with a label" in said
    assert "dual-head train kto" in said
    code, said = train(rows(), "--label_threshold", "0", name="hidden")
    assert code != 0
    assert "'hidden' learns from pairs" in said
