"""`dual-head serve`: what it loads, what it says, and how it ends."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
from files import write_guides
from servers import until

from dual_head import HiddenConfig
from dual_head.cli import main
from dual_head.cli import serve as command
from dual_head.demo import demonstration
from dual_head.serve import server
from dual_head.serve.settings import ServerSettings


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    return write_guides(tmp_path_factory.mktemp("guides"), backbone_folder, {"kind": HiddenConfig()})


@pytest.fixture
def served(monkeypatch):
    """What would be served, instead of serving it."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments))
    return calls


def refused(capsys, *arguments) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_folder_of_guides_is_served_under_its_name(guides, served):
    assert main(["serve", str(guides), "--port", "0", "--max_queue", "3", "--max_rows", "5"]) == 0
    ((model, tokenizer, name, settings, sizes, listener),) = served
    assert list(model.config.guides) == ["kind"]
    assert (name, settings.max_queue, sizes.max_rows) == (guides.name, 3, 5)
    assert tokenizer.eos_token == "</s>"
    assert listener.fileno() == -1  # the port is free again


def test_a_plain_model_is_served_without_guides(backbone_folder, served, capsys):
    assert main(["serve", str(backbone_folder), "--port", "0", "--served_model_name", "mine"]) == 0
    model, _, name, *_ = served[0]
    assert (model.config.guides, name) == ({}, "mine")
    assert "has no other --backbone" in refused(capsys, backbone_folder, "--port", "0", "--backbone", backbone_folder)


def interrupted(recipe, objective, output, folder, options):
    """A training that was stopped in its middle."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    raise KeyboardInterrupt


@pytest.mark.heavy
def test_without_a_folder_the_demonstrations_guides_are_trained_once(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "find_chat_model", lambda: None)
    monkeypatch.setattr(command, "DemoOptions", partial(command.DemoOptions, pairs=40, steps=1, batch_size=4))
    with monkeypatch.context() as context:
        context.setattr(demonstration, "_train", interrupted)
        assert main(["serve", "--port", "0"]) == 130
    assert "no demo-out/both here: the demonstration's two guides are trained first" in capsys.readouterr().err
    assert main(["serve", "--port", "0"]) == 0
    words = capsys.readouterr().err
    assert "demo-out is half made: the demonstration's two guides are trained first" in words
    assert "dual-head serve FOLDER" in words
    assert main(["serve", "--port", "0"]) == 0
    assert "serving the demonstration's guides of demo-out/both" in capsys.readouterr().err
    for model, _, name, *_ in served:
        assert (list(model.config.guides), name) == (["helpful", "harmless"], "both")


def test_a_port_in_use_is_refused_before_the_model_is_loaded(guides, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_guided", None)
    with server.listen(ServerSettings(port=0)) as listener:
        port = listener.getsockname()[1]
        assert f"127.0.0.1:{port} is in use" in refused(capsys, guides, "--port", port)


def test_what_cannot_be_is_refused(guides, tmp_path, capsys):
    assert "--port must be at least 0 and at most 65535" in refused(capsys, guides, "--port", 70000)
    assert "--max_queue must be at least 1" in refused(capsys, guides, "--max_queue", 0)
    assert "none.yaml" in refused(capsys, guides, "--presets", tmp_path / "none.yaml")


def test_without_the_extra_the_line_that_installs_it_is_told(guides, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'dual-head[serve]'" in refused(capsys, guides)


@pytest.mark.heavy
def test_a_process_says_where_it_is_answers_and_lets_requests_end_when_it_is_terminated(guides):
    arguments = [guides, "--port", "0", "--num_blocks", "64", "--api_key", "secret-key"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dual_head", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline().rstrip() for _ in range(4)]
        url = lines[0].removeprefix("ready    ")
        assert lines[1] == f"models   {guides.name}, {guides.name}:base, {guides.name}:kind"
        assert lines[2] == "guides   kind (alpha 1)"
        assert lines[3].startswith(f"try      curl {url}v1/chat/completions")
        with httpx2.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer secret-key"}) as http:
            body = {"prompt": "ask1 ask2", "max_tokens": 55, "n": 8, "temperature": 1.0, "ignore_eos": True}
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(http.post, "/v1/completions", json=body)
                until(lambda: "dual_head_num_requests_running 8.0" in http.get("/metrics").text)
                process.send_signal(signal.SIGTERM)
                assert answer.result().status_code == 200
            assert answer.result().json()["usage"]["completion_tokens"] == 8 * 55
        assert process.wait(30) == -signal.SIGTERM
        log = process.stderr.read()
        assert "secret-key" not in log
        *lines, last = log.splitlines()
        assert last == "dual-head: terminated"
        assert all(line.startswith("{") for line in lines), log  # requests, and no warning of anything
    finally:
        process.kill()
        process.communicate()
