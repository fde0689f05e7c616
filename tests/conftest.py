"""Fixtures of every test."""

import gc
import getpass
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Loops that tests compile stay out of the user's cache.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir(), f"dual-head-tests-{getpass.getuser()}"))
torch.set_num_threads(1)  # tiny tensors and parallel test processes: more threads only get in each other's way

# What `make check` runs: the parts by themselves, on two architectures. Whole commands and runs are in `make test`.
FAST = {
    "backbone",
    "console",
    "contract",
    "data",
    "files",
    "guides",
    "losses",
    "model",
    "ops",
    "options",
    "papers",
    "test_errors.py",
    "test_methods.py",
    "test_stats.py",
}
FAST_ARCHITECTURES = {"llama", "gpt2"}
NOT_FAST = ("heavy", "slow", "real")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, leave the other tests unread: their imports take seconds."""
    return True if config.option.markexpr == "fast" and not is_part(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast tests."""
    for item in items:
        if is_fast(item):
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections, of which every engine makes two when it stops."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Leave what a file's tests imported out of later collections too, and let their garbage go before."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def is_part(path: Path) -> bool:
    """Tell whether a path under tests/ tests parts by themselves, or is tests/ itself."""
    relative = path.relative_to(Path(__file__).parent)
    return not relative.parts or relative.parts[0] in FAST


def is_fast(item: pytest.Item) -> bool:
    """Tell whether a test is of a part by itself, on a fast architecture."""
    if not is_part(item.path) or any(item.get_closest_marker(mark) for mark in NOT_FAST):
        return False
    models = sys.modules.get("models")  # imported by the tests that have an architecture
    others = set(models.ARCHITECTURES) - FAST_ARCHITECTURES if models else set()
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return not any(isinstance(value, str) and value in others for value in parameters)


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
