"""One caching run: preference data and a backbone in, a folder of hidden states out that guides are trained from.

It says what the folder will hold and what that costs before it writes, goes on where a stopped run was, and refuses
a folder of another backbone or other data. It knows the order of things; how each is done is in the files beside it.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from dual_head import __version__
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import Fingerprint, tokenizer_fingerprint
from dual_head.console.gauge import Gauge, duration
from dual_head.console.terminal import Terminal
from dual_head.data import RowReport
from dual_head.data.tokenize import longest_sequence
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, checksums, exclusive, require_place
from dual_head.methods import Method
from dual_head.train.feature_cache import FeatureCache, Layout, Plan, plan_shards, save_head, write_shards
from dual_head.train.feature_cache.head import outside
from dual_head.train.feature_cache.inputs import needs_of, require_cacheable
from dual_head.train.feature_cache.store import (
    ALL,
    MANIFEST_FILE,
    PARTS,
    STORED,
    VERSION,
    forget_altered,
    read_manifest,
    recorded,
    remove_shards,
    write_manifest,
)
from dual_head.train.identity import differences, source_of
from dual_head.train.inputs import load_data, load_lm, load_tokenizer_of
from dual_head.train.options import CacheOptions

# What may differ between two commands that write one cache: where things are; and how much data, which only grows.
WHEREABOUTS = ("model_name_or_path", "dataset_name", "dataset_split", "max_pairs", "tokenizer_name")


def cache_features(method: Method, options: CacheOptions) -> FeatureCache:
    """Write the feature cache that a method's guides are trained from, or what is missing of it."""
    processes = PartialState(cpu=not torch.accelerator.is_available())
    with exclusive(options.output_dir, main=processes.is_main_process):
        return _cache_features(method, options, processes)


def _cache_features(method: Method, options: CacheOptions, processes: PartialState) -> FeatureCache:
    main = processes.is_main_process
    console = Terminal(quiet=not main, soft_wrap=True)
    folder = Path(options.output_dir)
    require_place(folder, record=MANIFEST_FILE, reads=(options.model_name_or_path, options.dataset_name))
    with atomic_folder(folder):
        pass  # a folder that cannot be written is refused before anything is loaded
    require_cacheable(method)  # before anything large is loaded
    tokenizer = load_tokenizer_of(options)
    train_set, held_out, drops = load_data(options, tokenizer, console, progress=main)
    parts = {"train": train_set, "held_out": held_out}
    backbone = _backbone(options, processes)
    layout = _layout(method, backbone, options.dtype)
    why_not = backbone.why_no_shared_prompts(max(longest_sequence(rows) for rows in parts.values() if len(rows)))
    manifest = _manifest(backbone, tokenizer, layout, options, drops, why_not)
    if not options.restart:
        _require_same(folder, manifest)
        if main:
            for shard in forget_altered(folder):
                console.print(f"'{shard}' is not what was written, and is written again.")
        processes.wait_for_everyone()
    plan = plan_shards(None if options.restart else folder, parts, layout, pairs_per_shard=options.pairs_per_shard)
    _announce(plan, folder, backbone, console, why_not)
    if main:
        _begin(folder, manifest, backbone, tokenizer, restart=options.restart)
    processes.wait_for_everyone()
    _write(folder, backbone, parts, plan, options, why_not, processes, console)
    processes.wait_for_everyone()
    if main:
        _finish(folder, manifest, plan)
        console.print(
            f"Features written to {folder}. Train from them: dual-head train {method.name} --feature_cache {folder}"
        )
    processes.wait_for_everyone()
    return FeatureCache(folder)


def _backbone(options: CacheOptions, processes: PartialState) -> Backbone:
    lm = load_lm(options, options.backbone_dtype)
    if options.device_map is None and options.quantization == "none":
        lm.to(processes.device)  # type: ignore[arg-type]
    return Backbone(lm)


def _layout(method: Method, backbone: Backbone, dtype: str) -> Layout:
    shape = backbone.shape
    needs = needs_of(method, shape)
    if dtype == "auto":
        names = [name for name, kind in STORED.items() if kind == backbone.lm.dtype]
        if not names:
            raise DualHeadError(f"Hidden states in {backbone.lm.dtype} cannot be stored as they are. Say --dtype bf16.")
        dtype = names[0]
    inner = backbone.config.get_text_config(decoder=True).hidden_size
    layers = {f"layers.{i}": inner for i in needs.layers if i != shape.num_layers}  # the last is "hidden" itself
    return Layout(positions=needs.positions, widths={"hidden": shape.hidden_size, **layers}, dtype=dtype)


def _manifest(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    options: CacheOptions,
    drops: Mapping[str, RowReport],
    why_not: str | None,
) -> dict[str, Any]:
    """Everything that is known before the first shard is written."""
    return {
        "format": VERSION,
        "complete": False,
        "positions": layout.positions,
        "widths": layout.widths,
        "dtype": layout.dtype,
        "pairs_per_shard": options.pairs_per_shard,
        "options": source_of(options),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "backbone": {
            "name_or_path": source_of(options)["model_name_or_path"],
            "dtype": str(backbone.lm.dtype),
            "parameters": sum(p.numel() for p in backbone.lm.parameters()),
            "prompts_run_twice_because": why_not,
            "fingerprint": backbone.fingerprint().as_dict(),
        },
        "versions": {
            "dual_head": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
        "drops": {stage: _plain(d) for stage, d in drops.items()},
        "files": {},
        "parts": {part: {"pairs": 0, "shards": []} for part in PARTS},
    }


def _plain(drops: RowReport) -> dict[str, Any]:
    values = {f.name: getattr(drops, f.name) for f in dataclasses.fields(drops)}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


def _require_same(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to go on with a cache of another backbone, tokenizer, layout or other options, naming what differs."""
    recorded = read_manifest(folder)
    if recorded is None:
        return
    changes = differences(recorded, manifest, ("positions", "widths", "dtype", "pairs_per_shard", "tokenizer"))
    names = [name for name in manifest["options"] if name not in WHEREABOUTS]
    changes += differences(recorded["options"], manifest["options"], names)
    before, current = recorded["backbone"], manifest["backbone"]
    prints = (Fingerprint.from_dict(backbone["fingerprint"]) for backbone in (before, current))
    changes += [f"backbone: {difference}" for difference in next(prints).differences(next(prints))]
    if before["dtype"] != current["dtype"]:
        changes.append(f"backbone_dtype: {before['dtype']} there, {current['dtype']} now")
    if changes:
        raise DualHeadError(
            f"'{folder}' holds a feature cache of something else ({'; '.join(changes[:4])}). "
            "Choose another --output_dir, or add --restart to delete it."
        )


def _announce(plan: Plan, folder: Path, backbone: Backbone, console: Console, why_not: str | None) -> None:
    """Say what the cache holds and takes. Errors: more than fits on the disk."""
    layout, tasks = plan.layout, plan.tasks
    pairs, rows = sum(task.stop - task.start for task in tasks), sum(task.rows for task in tasks)
    head = sum(x.numel() * x.element_size() for x in outside(backbone.lm).values())
    size, free = plan.bytes(plan.missing) + head, shutil.disk_usage(folder).free
    extent = "of every token, prompts once" if layout.positions == ALL else "that predict response tokens"
    console.print(
        f"{pairs:,} pairs, {rows:,} hidden states {extent}; {', '.join(layout.widths)} in {layout.dtype}\n"
        f"{layout.row_bytes:,} bytes each, {_size(plan.bytes(tasks))}; {_size(size)} to write, {_size(free)} free"
    )
    if why_not:
        console.print(f"Prompts are run once for each response: the backbone cannot share them, {why_not}.")
    if len(plan.missing) < len(tasks):
        console.print(f"{len(tasks) - len(plan.missing)} of {len(tasks)} shards are there already.")
    if size > free:
        raise DualHeadError(
            f"{_size(size)} do not fit into the {_size(free)} that are free at '{folder}'. Store with --dtype int8, "
            "cache for a method without an attention gate (response positions only), lower --max_pairs, or choose "
            "another --output_dir."
        )


def _size(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1000:.1f} kB"


def _begin(
    folder: Path, manifest: dict[str, Any], backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *, restart: bool
) -> None:
    """Write everything but the shards, and into the manifest what it is."""
    if restart:
        remove_shards(folder)
    with atomic_folder(folder) as staging:
        save_head(backbone, staging)
        tokenizer.save_pretrained(staging)
        manifest["files"] = {name: digest["sha256"] for name, digest in checksums(staging.iterdir()).items()}
        write_manifest(staging, manifest)


def _write(
    folder: Path,
    backbone: Backbone,
    parts: dict[str, Any],
    plan: Plan,
    options: CacheOptions,
    why_not: str | None,
    processes: PartialState,
    console: Console,
) -> None:
    """Write this process's share of the missing shards, r, r + W, ... of them."""
    tasks = plan.missing[processes.process_index :: processes.num_processes]
    with Gauge("hidden states", sum(task.rows for task in tasks), quiet=console.quiet) as gauge:
        shards = write_shards(
            folder,
            backbone,
            parts,
            plan,
            tasks,
            share_prompt=why_not is None,
            batch_tokens=options.batch_tokens,
            on_rows=gauge.advance,
        )
        for number, shard in enumerate(shards, 1):
            gauge.line(f"shard {number} of {len(tasks)} is whole: {shard.file}")
            if number == 1:
                _say_worth(gauge.whole, console)


def _say_worth(seconds: float, console: Console) -> None:
    console.print(
        f"All take about {duration(seconds)}, as streaming does in every epoch: a cache pays from the 2nd epoch, or "
        "the 2nd run, on; for a single epoch train without --feature_cache."
    )


def _finish(folder: Path, manifest: dict[str, Any], plan: Plan) -> None:
    """Collect the checksums of all shards into the manifest."""
    parts: dict[str, dict[str, Any]] = {part: {"pairs": 0, "shards": []} for part in PARTS}
    for task in plan.tasks:
        shard = recorded(folder, task.name)
        if shard is None or shard.data != task.data:
            raise DualHeadError(f"'{folder / task.name}' was changed while it was written. Run the same command again.")
        parts[task.part]["pairs"] += shard.pairs
        parts[task.part]["shards"].append(dataclasses.asdict(shard))
    with atomic_folder(folder) as staging:
        write_manifest(staging, {**manifest, "complete": True, "parts": parts})
