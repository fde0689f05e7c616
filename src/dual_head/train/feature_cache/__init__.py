"""The feature cache: what a frozen backbone says about preference pairs, written once and trained from often.

    store   the files, and whether they are whole          write   pairs through a backbone, shard by shard
    head    what of a backbone training still needs        read    shards back to batches

It knows no method and no training: a guide's `Needs` say which hidden states to keep.
"""

from dual_head.train.feature_cache.head import load_head, save_head
from dual_head.train.feature_cache.read import FeatureCache, FeatureCollator, FeatureSet
from dual_head.train.feature_cache.store import Layout, Needs, needs_of, verify
from dual_head.train.feature_cache.write import Plan, plan_shards, write_shards

__all__ = [
    "FeatureCache",
    "FeatureCollator",
    "FeatureSet",
    "Layout",
    "Needs",
    "Plan",
    "load_head",
    "needs_of",
    "plan_shards",
    "save_head",
    "verify",
    "write_shards",
]
