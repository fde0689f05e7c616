"""Writing a feature cache: preference data and a backbone in, a folder of hidden states to train from out.

It says what the folder will hold and what that costs before it writes, goes on where a stopped run was, and refuses
a folder of another backbone or other data. It knows the order of things; how each is done is in the files beside it.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from accelerate import PartialState

from dual_head import __version__
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import Fingerprint, tokenizer_fingerprint
from dual_head.backbone.probe import probe
from dual_head.console.gauge import Gauge, duration
from dual_head.console.terminal import Terminal
from dual_head.data import RowReport
from dual_head.data.tokenize import longest_sequence
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, checksums, exclusive, require_place
from dual_head.methods import Method
from dual_head.train.feature_cache import ALL, FeatureCache, Layout, plan_shards, save_head
from dual_head.train.feature_cache.head import outside
from dual_head.train.feature_cache.inputs import needs_of, require_cacheable
from dual_head.train.feature_cache.store import (
    HIDDEN,
    MANIFEST_FILE,
    PARTS,
    STORED,
    VERSION,
    forget_altered,
    layer_name,
    publish,
    read_manifest,
    read_record,
    remove_shards,
    write_manifest,
)
from dual_head.train.feature_cache.write import pairs_of, shard_of
from dual_head.train.identity import differences, source_of
from dual_head.train.inputs import load_data, load_lm, load_tokenizer_of
from dual_head.train.options import CacheOptions

# What may differ between two commands that write one cache: where things are; and how much data, which only grows.
WHEREABOUTS = ("model_name_or_path", "dataset_name", "dataset_split", "max_pairs", "tokenizer_name")


def cache_features(method: Method, options: CacheOptions) -> FeatureCache:
    """Write the feature cache that a method's guides are trained from, or what is missing of it."""
    processes = PartialState(cpu=not torch.accelerator.is_available())
    with exclusive(options.output_dir, main=processes.is_main_process):
        return CacheRun(method, options, processes).complete()


class CacheRun:
    """One run that writes a feature cache. Errors: a folder of another backbone or other data, a full disk."""

    def __init__(self, method: Method, options: CacheOptions, processes: PartialState):
        self.method, self.options, self.processes = method, options, processes
        self.main = processes.is_main_process
        self.console = Terminal(quiet=not self.main, soft_wrap=True)
        self.folder = Path(options.output_dir)
        require_place(self.folder, record=MANIFEST_FILE, reads=(options.model_name_or_path, options.dataset_name))
        with atomic_folder(self.folder):
            pass  # a folder that cannot be written is refused before anything is loaded
        require_cacheable(method)

    def complete(self) -> FeatureCache:
        """Load backbone and data, and write what is not there yet."""
        options, console = self.options, self.console
        self.tokenizer = load_tokenizer_of(options)
        train_set, held_out, self.reports = load_data(self.method, options, self.tokenizer, console, progress=self.main)
        self.sets = {"train": train_set, "held_out": held_out}
        lm = load_lm(options, options.backbone_dtype)
        if options.device_map is None and options.quantization == "none":
            lm.to(self.processes.device)  # type: ignore[arg-type]
        self.backbone = Backbone(lm)
        self.layout = self._layout()
        longest = max(longest_sequence(rows) for rows in self.sets.values() if len(rows))
        self.obstacle = self.backbone.why_no_shared_prompts(longest)
        self.manifest = self._manifest()
        if not options.restart:
            self._require_same()
            for shard in forget_altered(self.folder) if self.main else ():
                console.print(f"'{shard}' is not what was written, and is written again.")
            self.processes.wait_for_everyone()
        written = None if options.restart else self.folder
        self.plan = plan_shards(written, self.sets, self.layout, pairs_per_shard=options.pairs_per_shard)
        self._announce()
        if self.main:
            self._begin()
        self.processes.wait_for_everyone()
        self._write()
        self.processes.wait_for_everyone()
        if self.main:
            self._finish()
            train = f"dual-head train {self.method.name} --feature_cache {self.folder}"
            console.print(f"Features written to {self.folder}. Train from them: {train}")
        self.processes.wait_for_everyone()
        return FeatureCache(self.folder)

    def _layout(self) -> Layout:
        """What is kept of every token, in the dtype that is asked for or the backbone's."""
        shape, dtype = self.backbone.shape, self.options.dtype
        needs = needs_of(self.method, shape)
        if dtype == "auto":
            names = [name for name, kind in STORED.items() if kind == self.backbone.lm.dtype]
            if not names:
                raise DualHeadError(
                    f"Hidden states in {self.backbone.lm.dtype} cannot be stored as they are. Say --dtype bf16."
                )
            dtype = names[0]
        inner = self.backbone.config.get_text_config(decoder=True).hidden_size
        layers = {layer_name(i): inner for i in needs.layers if i != shape.num_layers}  # the last is HIDDEN itself
        return Layout(positions=needs.positions, widths={HIDDEN: shape.hidden_size, **layers}, dtype=dtype)

    def _manifest(self) -> dict[str, Any]:
        """Everything that is known before the first shard is written."""
        source = source_of(self.options)
        return {
            "format": VERSION,
            "complete": False,
            "learns_from": self.method.learns_from,
            **dataclasses.asdict(self.layout),
            "pairs_per_shard": self.options.pairs_per_shard,
            "options": source,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "backbone": {
                "name_or_path": source["model_name_or_path"],
                "dtype": str(self.backbone.lm.dtype),
                "parameters": sum(p.numel() for p in self.backbone.lm.parameters()),
                "prompts_run_twice_because": self.obstacle,
                "fingerprint": self.backbone.fingerprint().as_dict(),
                "probe": probe(self.backbone).as_dict(),
            },
            "versions": {
                "dual_head": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "safetensors": safetensors.__version__,
            },
            "drops": {stage: _plain(report) for stage, report in self.reports.items()},
            "files": {},
            "parts": {part: {"pairs": 0, "shards": []} for part in PARTS},
        }

    def _require_same(self) -> None:
        """Refuse to go on with a cache of another backbone, tokenizer, layout or other options, naming what differs."""
        before, now = read_manifest(self.folder), self.manifest
        if before is None:
            return
        changes = differences(
            before, now, ("learns_from", "positions", "widths", "dtype", "pairs_per_shard", "tokenizer")
        )
        options = [name for name in now["options"] if name not in WHEREABOUTS]
        changes += differences(before["options"], now["options"], options)
        prints = (Fingerprint.from_dict(manifest["backbone"]["fingerprint"]) for manifest in (before, now))
        changes += [f"backbone: {difference}" for difference in next(prints).differences(next(prints))]
        dtypes = [manifest["backbone"]["dtype"] for manifest in (before, now)]
        if dtypes[0] != dtypes[1]:
            changes.append(f"backbone_dtype: {dtypes[0]} there, {dtypes[1]} now")
        if changes:
            raise DualHeadError(
                f"'{self.folder}' holds a feature cache of something else ({'; '.join(changes[:4])}). "
                "Choose another --output_dir, or add --restart to delete it."
            )

    def _announce(self) -> None:
        """Say what the cache holds and takes. Errors: more than fits on the disk."""
        plan, layout, console = self.plan, self.layout, self.console
        pairs, rows = sum(task.stop - task.start for task in plan.tasks), sum(task.rows for task in plan.tasks)
        head = sum(x.numel() * x.element_size() for x in outside(self.backbone.lm).values())
        size, free = plan.bytes(plan.missing) + head, shutil.disk_usage(self.folder).free
        nouns = "replies" if self.method.learns_from == "feedback" else "pairs"
        extent = "of every token, prompts once" if layout.positions == ALL else "that predict response tokens"
        console.print(
            f"{pairs:,} {nouns}, {rows:,} hidden states {extent}; {', '.join(layout.widths)} in {layout.dtype}\n"
            f"{layout.row_bytes:,} bytes each, {_size(plan.bytes(plan.tasks))}; {_size(size)} to write, "
            f"{_size(free)} free"
        )
        if self.obstacle:
            console.print(f"Prompts are run once for each response: the backbone cannot share them, {self.obstacle}.")
        if done := len(plan.tasks) - len(plan.missing):
            console.print(f"{done} of {len(plan.tasks)} shards are there already.")
        if size > free:
            raise DualHeadError(
                f"{_size(size)} do not fit into the {_size(free)} that are free at '{self.folder}'. Store with --dtype "
                "int8, cache for a method without an attention gate (response positions only), lower --max_pairs, or "
                "choose another --output_dir."
            )

    def _begin(self) -> None:
        """Write everything but the shards."""
        if self.options.restart:
            remove_shards(self.folder)
        with atomic_folder(self.folder) as staging:
            save_head(self.backbone, staging)
            self.tokenizer.save_pretrained(staging)
            self.manifest["files"] = {name: x["sha256"] for name, x in checksums(staging.iterdir()).items()}
            write_manifest(staging, self.manifest)

    def _write(self) -> None:
        """Write this process's share of the missing shards, r, r + W, ... of them."""
        tasks = self.plan.missing[self.processes.process_index :: self.processes.num_processes]
        with Gauge("hidden states", sum(task.rows for task in tasks), quiet=self.console.quiet) as gauge:
            for number, task in enumerate(tasks, 1):
                pairs = pairs_of(self.sets[task.part], task.start, task.stop)
                tensors = shard_of(
                    self.backbone,
                    pairs,
                    self.layout,
                    share_prompt=self.obstacle is None,
                    batch_tokens=self.options.batch_tokens,
                    on_rows=gauge.advance,
                )
                shard = publish(self.folder, task.name, tensors, pairs=len(pairs), rows=task.rows, data=task.data)
                gauge.line(f"shard {number} of {len(tasks)} is whole: {shard.file}")
                if number == 1:
                    self.console.print(
                        f"All take about {duration(gauge.whole)}, as streaming does in every epoch: a cache pays from "
                        "the 2nd epoch, or the 2nd run, on; for a single epoch train without --feature_cache."
                    )

    def _finish(self) -> None:
        """Collect the records of all shards into the manifest."""
        parts: dict[str, dict[str, Any]] = {part: {"pairs": 0, "shards": []} for part in PARTS}
        for task in self.plan.tasks:
            shard = read_record(self.folder, task.name)
            if shard is None or shard.data != task.data:
                file = self.folder / task.name
                raise DualHeadError(f"'{file}' was changed while it was written. Run the same command again.")
            parts[task.part]["pairs"] += shard.pairs
            parts[task.part]["shards"].append(dataclasses.asdict(shard))
        with atomic_folder(self.folder) as staging:
            write_manifest(staging, {**self.manifest, "complete": True, "parts": parts})


def _plain(report: RowReport) -> dict[str, Any]:
    values = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


def _size(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1000:.1f} kB"
