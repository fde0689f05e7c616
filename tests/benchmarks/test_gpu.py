"""The GPU's benchmark runs to its end on a CPU, compares equal losses, and says what it could not measure."""

import dataclasses
import json
import sys
import types

import gpu
import pytest
import scale
import torch
import torch.nn.functional as F
from gpu import SMALL, TINY, byte_bound, decoding, language_model, timed
from gpu_losses import Responses, fused_sides, head_loss, library_side, plain_side, with_gradient
from scale import FULL, HIDDEN


def responses(tokens: int = 16) -> Responses:
    torch.manual_seed(0)
    return Responses.of(TINY, tokens, SMALL.response, "cpu")


@pytest.mark.slow
def test_the_small_job_measures_every_side_of_every_section(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results" / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--output", str(output)])
    gpu.main()
    sections = json.loads(output.read_text())["sections"]
    assert sections.keys() == {"gpu-reductions", "gpu-memory", "gpu-training", "gpu-decode"}
    assert "gpu-decode" in capsys.readouterr().out
    decode, losses = sections["gpu-decode"]["rows"], sections["gpu-reductions"]["rows"]
    assert {(row[0], row[1]) for row in decode} == {(b, g) for b in (1, 2) for g in ("none", "merged", HIDDEN, FULL)}
    assert not [row for row in decode if isinstance(row[2], str)]
    missing = {row[1] for row in losses if row[2] == "not installed"}
    assert missing <= {"Liger, linear cross-entropy", "Liger, linear DPO", "cut-cross-entropy"}
    assert not [row for row in losses if "failed" in str(row[2])]
    assert {"three products", "library, Dual-Head"} <= {row[1] for row in losses if row[3]}
    assert [row[0] for row in sections["gpu-training"]["rows"]] == ["cached", "streamed"]
    assert [row[0] for row in sections["gpu-memory"]["rows"]] == [16, 32, 64]


def test_library_and_plain_autograd_compute_the_same_loss_and_gradient():
    lm, said = language_model(TINY, "cpu").float(), responses()
    said = dataclasses.replace(
        said, hidden=said.hidden.float(), batch={**said.batch, "hidden": said.hidden.float()[None]}
    )
    loss = head_loss(lm)
    loss.model.guides.float()
    own = loss.model.guide("dual_head").difference.up.weight
    torch.nn.init.normal_(own, std=0.5)
    difference = own.detach().clone().requires_grad_()
    library, plain = library_side(loss, said)(), plain_side(said, lm.lm_head.weight, difference)()
    torch.testing.assert_close(library, plain)
    library.backward()
    plain.backward()
    assert difference.grad is not None
    torch.testing.assert_close(own.grad, difference.grad)


def test_a_step_leaves_no_gradient_behind():
    loss, said = head_loss(language_model(TINY, "cpu")), responses()
    with_gradient(library_side(loss, said), loss)()
    assert all(x.grad is None for x in loss.parameters())


def test_fused_losses_are_used_where_they_are_installed(monkeypatch):
    given = {}

    class Dpo:
        def __call__(self, weight, hidden, labels, *, ref_input, ref_weight):
            given.update(hidden=hidden, labels=labels)
            return (weight.sum(),)

    modules = {
        "cut_cross_entropy": {"linear_cross_entropy": lambda h, w, labels: F.cross_entropy(h @ w.T, labels)},
        "liger_kernel.transformers": {
            "LigerFusedLinearCrossEntropyLoss": lambda: lambda w, h, labels: F.cross_entropy(h @ w.T, labels)
        },
        "liger_kernel.chunked_loss": {"LigerFusedLinearDPOLoss": Dpo},
    }
    for name, members in modules.items():
        monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
    said, weight = responses(), torch.randn(TINY.vocab, TINY.hidden, dtype=torch.bfloat16, requires_grad=True)
    sides = fused_sides(said, weight.detach(), weight)
    values = {name: side() for name, side in sides.items()}
    torch.testing.assert_close(values["cut-cross-entropy"], values["Liger, linear cross-entropy"])
    torch.testing.assert_close(values["cut-cross-entropy"], values["torch, linear_cross_entropy"], atol=0.05, rtol=0)
    # Two pairs of responses of four tokens, c c c c r r r r c c c c r r r r, as rows: both chosen, both rejected.
    chosen, rejected = said.labels.view(2, 2, 4)[:, 0], said.labels.view(2, 2, 4)[:, 1]
    assert given["labels"].tolist() == [*chosen.tolist(), *rejected.tolist()]
    assert given["hidden"].shape == (4, 4, TINY.hidden)


def test_a_side_that_fails_is_named_and_the_others_are_measured():
    def fails() -> None:
        raise ValueError("no such kernel\nsecond line")

    timings, failed = timed(SMALL, {"bound": lambda: None, "broken": fails})
    assert timings.keys() == {"bound"}
    assert failed == {"broken": "failed: ValueError: no such kernel"}
    assert timed(SMALL, {"broken": fails, "other": lambda: None})[0] == {}


def test_losses_that_fail_or_are_missing_keep_their_row(monkeypatch):
    def fails() -> torch.Tensor:
        raise RuntimeError("no Triton")

    monkeypatch.setattr(gpu, "fused_sides", lambda *_: {"broken": fails, "absent": None})
    rows = gpu.reductions(dataclasses.replace(SMALL, tokens=(16,)), language_model(TINY, "cpu")).rows
    assert {row[1]: row[2] for row in rows[-2:]} == {
        "broken": "failed: RuntimeError: no Triton",
        "absent": "not installed",
    }


def test_what_there_is_no_time_for_is_skipped_and_says_so():
    rows = decoding(SMALL, language_model(TINY, "cpu"), lambda: 0.0).rows
    assert [row[:2] for row in rows] == [(1, "skipped: out of time"), (2, "skipped: out of time")]


def test_the_bound_by_bytes_is_that_of_the_page_on_scale_with_keys_and_values():
    alone = dataclasses.replace(gpu.LARGE, prompt=0, new=0)
    assert byte_bound(alone, FULL, 1) == pytest.approx(scale.decode_ratio(alone.shape, FULL))
    assert byte_bound(gpu.LARGE, "merged", 64) == 1
    # Keys and values, 64 x 256 tokens of 512 KiB, are read with and without the guide.
    weights, kv = 2 * (alone.shape.decoder + alone.shape.head), 64 * 256 * 2**19
    own = 2 * scale.GUIDES[FULL](alone.shape) + 64 * 256 * 1536
    assert byte_bound(gpu.LARGE, FULL, 64) == pytest.approx(1 + own / (weights + kv))


@pytest.mark.parametrize(("options", "said"), [(["--small"], "say where with --output"), ([], "there is no GPU here")])
def test_no_figure_is_kept_that_is_no_result(options, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit):
        gpu.main()
    assert said in capsys.readouterr().err
