"""Whether the vLLM plugin is to be tested again: what counts as changed, and what does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "vllm_changes.py"
FILES = {
    "integrations/vllm/dual_head_vllm/__init__.py": "def f():\n    from dual_head.model import late\n",
    "integrations/vllm/tests/test_it.py": "import dual_head.ops.masks\n",
    "integrations/vllm/constraints.txt": "torch==2.13.0\n",
    "src/dual_head/__init__.py": "",
    "src/dual_head/guides/__init__.py": "",
    "src/dual_head/guides/hidden.py": "from dual_head.ops import linear\n",
    "src/dual_head/model/__init__.py": "",
    "src/dual_head/model/late.py": "def g():\n    from dual_head.train import run\n",
    "src/dual_head/ops/__init__.py": "",
    "src/dual_head/ops/linear.py": "",
    "src/dual_head/ops/masks.py": "",
    "src/dual_head/train/__init__.py": "",
    "src/dual_head/train/run.py": "",
    "docs/vllm.md": "",
}


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--root", root, *arguments], capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert call(tmp_path).returncode == 1  # nothing is recorded
    assert call(tmp_path, "--record").returncode == 0
    assert call(tmp_path).returncode == 0
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "integrations/vllm/constraints.txt",
        "integrations/vllm/tests/test_it.py",
        "src/dual_head/model/late.py",  # imported in a function of the plugin
        "src/dual_head/ops/linear.py",  # by a guide
        "src/dual_head/ops/__init__.py",  # runs before what is in it
    ],
)
def test_a_change_of_what_the_plugin_runs_is_named(repository, file):
    (repository / file).write_text("# changed\n")
    done = call(repository)
    assert done.returncode == 1
    assert file in done.stdout


@pytest.mark.parametrize("file", ["src/dual_head/train/run.py", "docs/vllm.md"])
def test_a_change_of_what_it_does_not_import_is_none(repository, file):
    (repository / file).write_text("# changed\n")
    assert call(repository).returncode == 0


def test_a_file_that_is_new_or_gone_is_a_change(repository):
    (repository / "integrations/vllm/tests/test_it.py").unlink()
    (repository / "src/dual_head/guides/other.py").write_text("")
    printed = call(repository).stdout
    assert "test_it.py" in printed
    assert "guides/other.py" in printed


def test_the_record_of_this_repository_is_of_files_that_are_there():
    record = json.loads((ROOT / "integrations" / "vllm" / "tested.json").read_text())
    assert "src/dual_head/guides/base.py" in record
    assert all(len(value) == 64 for value in record.values())
