"""The Python of docs/how-to/classify.md runs beside a trained classifier, as it stands there."""

import re
from pathlib import Path

from classifiers import write_dhrd

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "classify.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_python_of_the_page_classifies_its_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    (tmp_path / "out").mkdir()
    write_dhrd(tmp_path, labels=("false", "true")).rename(tmp_path / "out" / "creak")
    assert blocks
    capsys.readouterr()
    for i, block in enumerate(blocks):
        exec(compile(block, f"classify.md, block {i + 1}", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert all(re.fullmatch(r"(false|true) \{'false': [\d.e-]+, 'true': [\d.e-]+\}", line) for line in printed)
