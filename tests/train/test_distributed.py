"""Processes that share weights, work or both give the gradients of one, though the loss takes them in its forward.

The file runs itself as a script, which imports once and then forks into two processes that talk by gloo.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import VOCAB, tiny_lm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dual_head import AlignedModel, DualHeadError
from dual_head.data.collate import PairCollator
from dual_head.methods import method
from dual_head.train.step import GuidedLoss

TESTS = Path(__file__).parents[1]
PROCESSES, PAIRS = 2, 4
TOKENS_AT_ONCE = 20  # so that the loss takes its gradients in several parts, and not as many in each process
BYTES_PER_LOGIT = 32
GUIDES = {
    "dual_head": ("dual_head", {}),
    "hidden": ("hidden", {}),
    "hidden, gated": ("hidden", {"guide.gate": "attention"}),
    "kto": ("kto", {"beta": 1.0}),  # whose divergence is that of all processes together
}


def loss_of(guide: str) -> GuidedLoss:
    """The loss of a tiny model; the same weights in every process."""
    name, options = GUIDES[guide]
    chosen = method(name).with_options({"guide.init_std": 0.1, **options})
    torch.manual_seed(1)
    model = AlignedModel.from_backbone(tiny_lm("llama"), {name: chosen.guide})
    return GuidedLoss(model, chosen, guide=name, budget=VOCAB * BYTES_PER_LOGIT * TOKENS_AT_ONCE)


def batch(guide: str, pairs: slice) -> dict:
    """Some of the pairs, whose lengths all differ; for kto their rejected replies, with labels."""
    draw = torch.Generator().manual_seed(0)
    rows = [
        {
            f"{part}_ids": torch.randint(3, VOCAB, (length,), generator=draw).tolist()
            for part, length in (("prompt", 5 + i), ("chosen", 4 + 2 * i), ("rejected", 7 - i))
        }
        for i in range(PAIRS)
    ]
    if guide == "kto":
        names = {"prompt_ids": "prompt_ids", "rejected_ids": "completion_ids", "chosen_ids": "mismatched_ids"}
        rows = [{names[key]: ids for key, ids in row.items()} | {"label": i % 3 == 0} for i, row in enumerate(rows)]
    return dict(PairCollator(0, share_prompt=True)(rows[pairs]))


def gradients(loss: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, x in loss.named_parameters():
        if x.grad is not None:
            yield name.removeprefix("module."), x.grad


# ---- in each of the processes --------------------------------------------------------------------------------


def shard_all(loss: GuidedLoss) -> nn.Module:
    fully_shard(loss, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return loss


def shard_layers_and_all(loss: GuidedLoss) -> nn.Module:
    for layer in loss.model.backbone.lm.base_model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return shard_all(loss)


def shard_the_head_apart(loss: GuidedLoss) -> nn.Module:
    fully_shard(loss.model.guide(loss.guide).difference, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return shard_all(loss)


SHARDINGS: dict[str, Callable[[GuidedLoss], nn.Module]] = {
    "one shard": shard_all,
    "a shard a layer": shard_layers_and_all,
    "replicas": DistributedDataParallel,
}


def work(rank: int, folder: str) -> None:
    """Leave in the folder the gradients of every case, and what was said of one that cannot be."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    own = slice(rank * PAIRS // PROCESSES, (rank + 1) * PAIRS // PROCESSES)
    for sharding, shard in SHARDINGS.items():
        for guide in GUIDES:
            loss = shard(loss_of(guide))
            if sharding != "replicas":
                assert all(isinstance(x, DTensor) for x in loss.parameters()), "nothing was sharded"
            for _ in range(2):  # the second time with what the first has left behind
                loss.zero_grad()
                loss(**batch(guide, own))["loss"].backward()
            whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in gradients(loss)}
            if rank == 0:
                save_file({name: x.contiguous() for name, x in whole.items()}, file_of(folder, sharding, guide))
    try:
        shard_the_head_apart(loss_of("dual_head"))(**batch("dual_head", own))
    except DualHeadError as error:
        (Path(folder) / f"refused-{rank}").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


def file_of(folder: str | Path, sharding: str, guide: str) -> Path:
    return Path(folder) / f"{sharding}, {guide}.safetensors"


# ---- what came of it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_give_the_gradients_of_one(folder, sharding, guide):
    loss = loss_of(guide)
    out = loss(**batch(guide, slice(None)))
    out["loss"].backward()
    wanted, found = dict(gradients(loss)), load_file(file_of(folder, sharding, guide))
    assert found.keys() == wanted.keys()
    assert "divergence" not in out or out["divergence"].min() > 0.1  # or it would be left out of no gradient
    for name, x in wanted.items():
        assert x.abs().max() > 1e-4  # or the comparison would say nothing
        torch.testing.assert_close(found[name], x, atol=1e-5, rtol=0)


def test_a_guide_sharded_apart_from_the_loss_is_refused_since_its_gradient_would_be_lost(folder):
    for rank in range(PROCESSES):
        assert "Shard the backbone's layers and the whole GuidedLoss" in (folder / f"refused-{rank}").read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked, so that both have what was imported; nothing here has begun a thread or met an accelerator yet.
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=PROCESSES, start_method="fork")
