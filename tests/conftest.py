"""Fixtures of every test."""

import getpass
import os
import tempfile
from pathlib import Path

import pytest
import torch

# Loops that tests compile stay out of the user's cache.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir(), f"dual-head-tests-{getpass.getuser()}"))
torch.set_num_threads(1)  # tiny tensors and parallel test processes: more threads only get in each other's way


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, or DUAL_HEAD_DATA; skips where there is none."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("DUAL_HEAD_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set DUAL_HEAD_DATA to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama and its word-level tokenizer, saved as Hugging Face folders are."""
    from files import write_backbone

    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty preference pairs: replies of "good" words are chosen over replies of "bad" ones."""
    from files import write_pairs

    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 60)
