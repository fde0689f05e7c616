"""Names of a model, presets of a file."""

import pytest

from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.model.alpha import LinearDecay
from dual_head.serve.openai.models import read_presets, require_names, served_models


@pytest.fixture
def config():
    entries = {name: {"kind": "hidden"} for name in ("kind", "safe")}
    return AlignedConfig(guides=entries, alpha={"kind": 1.0, "safe": 0.5})


@pytest.mark.parametrize(
    ("presets", "words"),
    [
        ("[1]", "holds no presets"),
        ("3: 1", "holds no presets"),
        ("{", "Cannot read"),
        ("base: 1", "has the name of a model"),
        ("kind: 1", "has the name of a model"),
        ("strong: {nobody: 1}", "No guide is named 'nobody'"),
        ("strong: {kind: .nan}", "NaN or infinity"),
        ("strong: high", "alpha is a number"),
        ("strong: {kind: {start: 1}}", "start, end and tokens"),
    ],
)
def test_presets_that_cannot_be_are_refused(config, tmp_path, presets, words):
    (tmp_path / "presets.yaml").write_text(presets)
    with pytest.raises(DualHeadError, match=words):
        read_presets(tmp_path / "presets.yaml", config)


def test_presets_are_models_beside_the_guides_and_the_backbone(config, tmp_path):
    (tmp_path / "presets.yaml").write_text("both: 2\nfading:\n  safe: {start: 1, end: 0, tokens: 8}\n")
    presets = read_presets(tmp_path / "presets.yaml", config)
    assert served_models("m", config, presets) == {
        "m": {"kind": 1.0, "safe": 0.5},
        "m:base": {"kind": 0.0, "safe": 0.0},
        "m:kind": {"kind": 1.0, "safe": 0.0},
        "m:safe": {"kind": 0.0, "safe": 0.5},
        "m:both": {"kind": 2.0, "safe": 2.0},
        "m:fading": {"kind": 0.0, "safe": LinearDecay(1.0, 0.0, 8)},
    }


def test_a_preset_of_a_guide_that_is_detached_is_left_out(config):
    config.guides, config.alpha = {"kind": {"kind": "hidden"}}, {"kind": 1.0}
    models = served_models("m", config, {"fading": {"safe": 1.0}, "strong": {"kind": 2.0}})
    assert list(models) == ["m", "m:base", "m:kind", "m:strong"]


def test_a_guide_with_the_name_of_the_backbone_is_refused_with_the_remedy(config):
    require_names(config)
    config.guides["base"] = {"kind": "hidden"}
    with pytest.raises(DualHeadError, match=r"named 'base'.*dual-head compose NAME=FOLDER:base"):
        require_names(config)
