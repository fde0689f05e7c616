"""Guides side by side, as the published ones are: loaded together, put together, and served where their model is."""

import json
from types import SimpleNamespace

import pytest
from files import write_backbone, write_guides

from dual_head import HiddenConfig
from dual_head.cli import main
from dual_head.cli import serve as command
from dual_head.demo import chat_model
from dual_head.demo.chat_model import ChatModel, find_chat_model
from dual_head.serve import server
from dual_head.serve.openai.models import served_models
from dual_head.serve.settings import ServerSettings

PROMPT = ["--prompt", "ask0 ask1", "--max_new_tokens", "6", "--no_stream"]


@pytest.fixture(scope="module")
def place(backbone_folder, tmp_path_factory):
    """Two guides side by side without a tokenizer, of a backbone that was elsewhere when they were trained."""
    place = tmp_path_factory.mktemp("published")
    for seed, name in enumerate(("concise", "plain")):
        folder = write_guides(place / "guides" / name, backbone_folder, {name: HiddenConfig()}, seed=seed, spread=1.0)
        for file in folder.glob("token*"):
            file.unlink()
        values = json.loads((folder / "config.json").read_text())
        values["backbone_name_or_path"] = "nobody/no-such-model"
        (folder / "config.json").write_text(json.dumps(values))
    (place / "guides" / "README.md").write_text("Two guides.")
    return place


def reply(capsys, *arguments) -> str:
    assert main(["generate", *map(str, arguments), *PROMPT]) == 0
    return capsys.readouterr().out.strip()


def test_guides_side_by_side_act_when_they_are_asked_to(place, backbone_folder, capsys):
    guides, there = place / "guides", ["--backbone", backbone_folder]
    plain = reply(capsys, guides / "plain", *there, "--alpha", 0)
    assert reply(capsys, guides, *there) == plain
    for name in ("concise", "plain"):
        one = reply(capsys, guides / name, *there, "--alpha", 3)
        assert reply(capsys, guides, *there, "--alpha", f"{name}=3") == one != plain


def test_a_folder_of_them_is_composed_like_any_other(place, backbone_folder, tmp_path, capsys):
    sources = [f"{name}={place / 'guides' / name}" for name in ("concise", "plain")]
    composed = [
        "compose",
        *sources,
        "--model_name_or_path",
        str(backbone_folder),
        "--output_dir",
        str(tmp_path / "two"),
    ]
    assert main(composed) == 0
    capsys.readouterr()
    alpha = ["--alpha", "concise=2,plain=1"]
    together = reply(capsys, place / "guides", "--backbone", backbone_folder, *alpha)
    assert reply(capsys, tmp_path / "two", *alpha) == together


def test_what_does_not_fit_is_refused(place, backbone_folder, tmp_path, capsys):
    write_backbone(tmp_path / "twin", seed=8)
    arguments = ["generate", str(place / "guides"), *PROMPT]
    assert main([*arguments, "--backbone", str(tmp_path / "twin")]) == 2
    assert "other weights" in capsys.readouterr().err
    assert main([*arguments, "--backbone", str(tmp_path / "twin"), "--other_precision"]) == 2
    assert "its weights differ by" in capsys.readouterr().err
    assert main([*arguments, "--backbone", str(backbone_folder), "--vocab_map"]) == 2
    assert "name one of them" in capsys.readouterr().err
    assert main(["inspect", str(place / "guides")]) == 2
    assert "holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["", "plain"])
def test_where_the_backbone_cannot_be_loaded_the_remedy_is_to_say_where_it_is(place, part, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["generate", str(place / "guides" / part), *PROMPT]) == 2
    message = capsys.readouterr().err
    assert "nobody/no-such-model" in message
    assert "say where else it is with backbone=... (--backbone)" in message


def test_where_an_option_is_wrong_and_the_backbone_is_there_no_other_place_is_asked_for(
    backbone_folder, tmp_path, capsys
):
    guides = write_guides(tmp_path / "guides", backbone_folder, {"plain": HiddenConfig()})
    assert main(["generate", str(guides), *PROMPT, "--dtype", "float33"]) == 2
    message = capsys.readouterr().err
    assert "Unknown dtype 'float33'. Did you mean 'float32'?" in message
    assert "backbone" not in message


# ---- the chat model ------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without the chat model."""
    monkeypatch.setattr(chat_model.sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DUAL_HEAD_REAL", raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path


def test_the_chat_model_is_where_make_the_demonstration_or_the_hub_put_it(nowhere, backbone_folder, monkeypatch):
    assert find_chat_model() is None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: f"/hub/{file}")
    assert find_chat_model().flags == f"--backbone {chat_model.HUB_NAME} --other_precision"
    for folder in (nowhere / "cache" / "dual-head" / "smollm2", nowhere / "prefix" / "real" / "smollm2"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert find_chat_model() == ChatModel(str(folder))
    monkeypatch.setenv("DUAL_HEAD_REAL", str(backbone_folder))
    assert find_chat_model().flags == f"--backbone {backbone_folder}"


def test_it_is_fetched_once_into_the_users_cache(nowhere, monkeypatch):
    folder = nowhere / "cache" / "dual-head" / "smollm2"

    def write(place):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")

    monkeypatch.setattr(chat_model, "write_backbone", write)
    assert chat_model.fetch_chat_model() == ChatModel(str(folder))
    monkeypatch.setattr(chat_model, "write_backbone", None)  # calling it would fail
    assert chat_model.fetch_chat_model() == ChatModel(str(folder))


def test_without_a_folder_the_published_guides_are_served_where_their_model_is(
    place, backbone_folder, monkeypatch, capsys
):
    calls, lines = [], []
    monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(command, "PUBLISHED_GUIDES", place / "guides")
    monkeypatch.setattr(command, "find_chat_model", lambda: ChatModel(str(backbone_folder)))
    assert main(["serve", "--port", "0"]) == 0
    ((model, tokenizer, name, *_),) = calls
    assert (dict(model.config.alpha), name) == ({"concise": 0.0, "plain": 0.0}, "guides")
    assert tokenizer.eos_token == "</s>"
    assert f"serving the published guides on {backbone_folder}" in capsys.readouterr().err
    names = served_models(name, model.config, {})
    assert names["guides"] == names["guides:base"] == {"concise": 0.0, "plain": 0.0}
    assert names["guides:plain"] == {"concise": 0.0, "plain": 1.0}
    api = SimpleNamespace(host=SimpleNamespace(model=model), settings=ServerSettings(), models=lambda: names)
    with server.listen(ServerSettings(port=0)) as listener:
        server._announce(api, listener, lines.append)
    assert '"alpha": {"concise": 1.0}' in lines[0]
