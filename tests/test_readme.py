"""The Python of the README runs as it is printed."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_python_of_the_readme_runs_in_an_empty_folder(tmp_path, monkeypatch):
    blocks = BLOCK.findall(README.read_text())
    assert blocks, "README.md has no python block"
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for i, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {i + 1}", "exec"), names)
