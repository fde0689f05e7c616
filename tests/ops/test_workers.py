"""Workers of a thread end when it lets them go, and come back with its next loop."""

import subprocess
import sys

import pytest
import torch

COUNT = """
import os, torch
from dual_head.ops.workers import release_workers
torch.set_num_threads(3)
def loop():
    torch.randn(600, 600) @ torch.randn(600, 600)
    return len(os.listdir("/proc/self/task"))
alone, many = len(os.listdir("/proc/self/task")), loop()
assert release_workers()
print(alone, many, len(os.listdir("/proc/self/task")), loop())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this torch has other threads")
def test_a_thread_that_lets_its_workers_go_has_none_until_its_next_loop():
    output = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True).stdout
    alone, many, released, again = map(int, output.split())
    assert many > alone == released
    assert again == many
