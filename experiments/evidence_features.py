"""The hidden states of a world's backbone beside its pairs, which runs of several methods and seeds train from.

It knows worlds and the library's caches, and nothing of runs.
"""

from pathlib import Path

from evidence_work import claimed
from evidence_worlds import World

from dual_head import method
from dual_head.train.feature_cache.run import cache_features
from dual_head.train.options import CacheOptions

HELD_OUT = 0.05
CACHED = {"dual_head": "dual_head", "iav": "dual_head", "hidden": "dual_head", "mav": "mav"}  # whose features serve


def kept_features(world: World, name: str, objective: str) -> Path | None:
    """Where they are for a method and an objective, written once for all runs; None for a method without them."""
    if name not in CACHED:
        return None
    folder = world.folder.parent / "features" / f"{world.meant(objective)}-{CACHED[name]}-{world.extent}"
    with claimed(folder.with_suffix(".claim"), wait=True):
        options = CacheOptions(
            output_dir=str(folder),
            model_name_or_path=world.backbone,
            dataset_name=str(world.pairs(objective, 0)),
            held_out=HELD_OUT,
            max_length=world.max_length,
            max_pairs=world.most,
        )
        cache_features(method(CACHED[name]), options)
    return folder
