"""The README is short, and its Python runs as it is printed and prints what is shown."""

import re
from pathlib import Path

from engines import character_tokenizer, small_engine
from models import guided_lm
from servers import CHAT, running_server

from dual_head.demo import world
from dual_head.guides.hidden import HiddenConfig

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
REPLY = re.compile(r"^(\d\.\d) (.*)$", re.MULTILINE)
CLIENT = "from openai import"
PROMPT = "how do i paint a wall ?"


def test_the_readme_has_at_most_150_lines():
    assert len(README.read_text().splitlines()) <= 150


def test_the_python_of_the_readme_runs_in_an_empty_folder_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    blocks, (shown,) = [block for block in BLOCK.findall(text) if CLIENT not in block], SHOWN.findall(text)
    assert any(PROMPT in block for block in blocks)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for i, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {i + 1}", "exec"), names)
    printed = REPLY.findall(capsys.readouterr().out)
    assert [alpha for alpha, _ in printed] == [alpha for alpha, _ in REPLY.findall(shown)] == ["0.0", "1.0", "2.0"]
    # The backbone's reply is the same everywhere. A trained guide's may differ in a word, and is the better one.
    assert printed[0] == REPLY.findall(shown)[0]
    request = world.parse_request(f"user : {PROMPT} assistant :")
    for replies in (printed, REPLY.findall(shown)):
        rewards = [world.reward(request, reply).total for _, reply in replies]
        assert rewards[1] > rewards[0]


def test_the_client_of_the_readme_is_answered_by_a_server_at_the_strengths_that_it_names(capsys):
    (block,) = [block for block in BLOCK.findall(README.read_text()) if CLIENT in block]
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT
    model = guided_lm({name: HiddenConfig(rank=4) for name in ("helpful", "harmless")})
    with running_server(model, tokenizer, small_engine, name="both") as server:
        assert "http://127.0.0.1:8000/v1" in block  # where `dual-head serve` listens
        exec(compile(block.replace("http://127.0.0.1:8000", server.url), "README.md", "exec"), {})
        printed = capsys.readouterr().out
        asked = {"model": "both", "messages": [{"role": "user", "content": "How do I bake bread?"}]}
        alphas = {"helpful": 0.8, "harmless": 0.2}
        expected = server.client().chat.completions.create(**asked, temperature=0, extra_body={"alpha": alphas})
    assert printed == f"{expected.choices[0].message.content} {alphas}\n"
