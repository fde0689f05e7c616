"""The feature cache: a frozen backbone's hidden states of preference pairs, written once and trained from often.

    store   the files, and whether they are whole          write   pairs through a backbone, shard by shard
    head    what of a backbone training still needs        read    shards back to batches
    run     the command that writes a cache                inputs  a training run that reads one

Only `run` and `inputs` know methods and runs: to the others, `Needs` say which hidden states to keep.
"""

from dual_head.train.feature_cache.head import load_head, save_head
from dual_head.train.feature_cache.read import FeatureCache, FeatureCollator, FeatureSet
from dual_head.train.feature_cache.store import ALL, RESPONSE, Layout, Needs, verify
from dual_head.train.feature_cache.write import Plan, plan_shards

__all__ = [
    "ALL",
    "RESPONSE",
    "FeatureCache",
    "FeatureCollator",
    "FeatureSet",
    "Layout",
    "Needs",
    "Plan",
    "load_head",
    "plan_shards",
    "save_head",
    "verify",
]
