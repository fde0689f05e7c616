"""The real model of these tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The model's folder, or DUAL_HEAD_REAL; skips where there is none."""
    beside = Path(__file__).parents[2] / ".venv" / "real" / "smollm2"
    folder = Path(os.environ.get("DUAL_HEAD_REAL", beside))
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real model in {folder}; fetch it with: python scripts/real_backbone.py {folder}")
    return str(folder)
