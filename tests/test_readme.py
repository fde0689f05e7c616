"""The README is short, and its Python runs as it is printed and prints what is shown."""

import re
from pathlib import Path

from dual_head.demo import world

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
REPLY = re.compile(r"^(\d\.\d) (.*)$", re.MULTILINE)
PROMPT = "how do i paint a wall ?"


def test_the_readme_has_at_most_150_lines():
    assert len(README.read_text().splitlines()) <= 150


def test_the_python_of_the_readme_runs_in_an_empty_folder_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    blocks, (shown,) = BLOCK.findall(text), SHOWN.findall(text)
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
