"""A feature cache on disk: what its files hold, how numbers are stored, and whether a file is whole.

    manifest.json          whose features these are, and every shard with its checksum
    features-00000.*       pairs to train on: .safetensors, and .json with its checksum from the moment it is whole
    held_out-00000.*       pairs to evaluate on
    head.safetensors       what of the backbone is outside its decoder; config.json and the tokenizer beside it

It knows tensors and files; no backbone, no data set and no training.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dual_head.backbone.fingerprint import Fingerprint
from dual_head.errors import DualHeadError
from dual_head.files.places import altered, file_digest, flush
from dual_head.files.reading import read_json, reading
from dual_head.options import build, fit

VERSION = 1
MANIFEST_FILE, HEAD_FILE = "manifest.json", "head.safetensors"
DIGEST = "digest"  # of a manifest or of what is said beside a shard, in it
PARTS = {"train": "features", "held_out": "held_out"}  # what the names of their shards begin with
WRITING = ".writing"  # the end of a name whose file is not whole yet
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
RESPONSE, ALL = "response", "all"  # positions: those that predict a response token, or every token
# What every manifest says, and of what types; its digest tells whether anything of it was altered since.
MANIFEST_TYPES = {
    "complete": bool,
    "positions": str,
    "widths": dict[str, int],
    "dtype": str,
    "pairs_per_shard": int,
    "options": dict,
    "tokenizer": str,
    "backbone": dict,
    "drops": dict[str, dict],
    "files": dict[str, str],
    "parts": dict[str, dict],
}
ID_BYTES, SCALE_BYTES, LENGTH_BYTES = 4, 4, 12


@dataclass(frozen=True)
class Needs:
    """What guides read of a backbone: every position or those of responses, and which layers by number."""

    positions: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is kept of every token: positions, {tensor: width} ("hidden", "layers.3", ...), and the stored dtype."""

    positions: str
    widths: dict[str, int]
    dtype: str

    def rows(self, lengths: Tensor) -> Tensor:
        """Rows of pairs whose prompt, chosen and rejected lengths are [n, 3]."""
        return lengths.sum(1) if self.positions == ALL else lengths[:, 1:].sum(1)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        scale = SCALE_BYTES if self.dtype == "int8" else 0
        return ID_BYTES + sum(width * STORED[self.dtype].itemsize + scale for width in self.widths.values())


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one file; data: the hash of its pairs' token ids."""

    file: str
    pairs: int
    rows: int
    bytes: int
    sha256: str
    data: str


# ---- numbers -----------------------------------------------------------------------------------------------


def pack(name: str, x: Tensor, dtype: str) -> dict[str, Tensor]:
    """Store rows [n, d]: cast, or for int8 divided by a scale per row so that the largest is 127."""
    if dtype != "int8":
        return {name: x.to(STORED[dtype])}
    x = x.float()
    scale = x.abs().amax(-1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return {name: (x / scale[:, None]).round().to(torch.int8), f"{name}.scale": scale}


def unpack(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows [n, d] as `pack` was given them, up to rounding, in `dtype`."""
    return x.to(dtype) if scale is None else (x.float() * scale[:, None]).to(dtype)


# ---- files -------------------------------------------------------------------------------------------------


def shard_name(part: str, index: int) -> str:
    """Name a shard, without what its two files end in."""
    return f"{PARTS[part]}-{index:05d}"


def publish(folder: Path, name: str, tensors: Mapping[str, Tensor], *, pairs: int, rows: int, data: str) -> Shard:
    """Write a shard whole or not at all: under another name, renamed, and only then with its checksum beside it."""
    file, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    record.unlink(missing_ok=True)  # what it says is about to be wrong
    with _written(file) as writing:
        save_file({key: x.contiguous() for key, x in tensors.items()}, writing, metadata={"format": "pt"})
        writing.chmod(0o644)  # safetensors makes it private
        flush(writing)  # a power cut after the rename would leave a whole name on half a file
        shard = Shard(file.name, pairs, rows, **file_digest(writing), data=data)
    with _written(record) as writing:
        writing.write_text(json.dumps({**asdict(shard), DIGEST: digest_of(asdict(shard))}, indent=2))
    return shard


@contextmanager
def _written(file: Path) -> Iterator[Path]:
    """Yield another name, which becomes `file` when the block ends well, and is gone when it does not."""
    writing = file.with_name(f".{file.name}{WRITING}")
    try:
        yield writing
        writing.replace(file)
    finally:
        writing.unlink(missing_ok=True)


def recorded(folder: Path, name: str) -> Shard | None:
    """What is said beside a shard; None where it was never whole, or was altered. Its bytes are not read."""
    try:
        values = read_json(folder / f"{name}.json", "")
        if values.pop(DIGEST, None) not in (None, digest_of(values)):
            return None
        return build(Shard, values)
    except DualHeadError:
        return None


def forget_altered(folder: Path) -> list[str]:
    """Forget shards whose bytes are not those that were written, so that they are written again; return their names."""
    names = [file.stem for part in PARTS.values() for file in folder.glob(f"{part}-*.json")]
    shards = [shard for name in names if (shard := recorded(folder, name))]
    forgotten = altered(folder, {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards})
    for file in forgotten:
        (folder / file).with_suffix(".json").unlink()
    return forgotten


def is_there(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file has the size it should have."""
    file = folder / shard.file
    return file.is_file() and file.stat().st_size == shard.bytes


def digest(rows: Iterable[Mapping[str, list[int]]]) -> str:
    """Hash token ids of pairs in their order, so that equal hashes mean equal pairs."""
    content = hashlib.sha256()
    for row in rows:
        ids = [row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")]
        content.update(torch.tensor([*map(len, ids), *ids[0], *ids[1], *ids[2]], dtype=torch.int32).numpy().tobytes())
    return content.hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into a folder, which is one that takes its place whole where the manifest counts."""
    values = {**manifest, DIGEST: digest_of(manifest)}
    (folder / MANIFEST_FILE).write_text(json.dumps(values, indent=2) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Read a folder's manifest; None where there is none. Errors: one that is cut short, or of another version."""
    file = Path(folder) / MANIFEST_FILE
    if not file.is_file():
        return None
    remedy = "Write the feature cache again with --restart."
    manifest = read_json(file, remedy)
    with reading(f"Cannot read '{file}'", remedy):
        version = manifest["format"]
        if version == VERSION:
            _require_unaltered(manifest)
    if version != VERSION:
        raise DualHeadError(
            f"'{folder}' is a feature cache of format {version}, and this version reads {VERSION}. "
            "Write it again with --restart."
        )
    return manifest


def _require_unaltered(manifest: Mapping[str, Any]) -> None:
    if manifest.get(DIGEST) not in (None, digest_of(manifest)):
        raise ValueError("it was altered after it was written")
    for key, kind in MANIFEST_TYPES.items():
        fit(manifest[key], kind, key)
    Fingerprint.from_dict(manifest["backbone"]["fingerprint"])
    for part in PARTS:
        for shard in manifest["parts"][part]["shards"]:
            build(Shard, shard)


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of what a manifest says, in hexadecimal digits."""
    values = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def remove_shards(folder: Path) -> None:
    """Delete a cache's shards, and nothing else that may lie beside them; by the manifest it is known as a cache."""
    kinds = [f"{name}-[0-9][0-9][0-9][0-9][0-9].{end}" for name in PARTS.values() for end in ("safetensors", "json")]
    for pattern in (*kinds, *(f".{kind}{WRITING}" for kind in kinds)):
        for file in folder.glob(pattern):
            file.unlink()


def verify(folder: str | Path) -> int:
    """Compute every checksum again and return how many files there are. Errors: the first that differs, by name."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DualHeadError(
            f"'{folder}' holds no {MANIFEST_FILE}, so it is no feature cache. Write one: dual-head cache."
        )
    digests = dict(manifest["files"])
    for part in manifest["parts"].values():
        digests |= {shard["file"]: shard["sha256"] for shard in part["shards"]}
    for name, recorded_digest in digests.items():
        file = Path(folder) / name
        if not file.is_file() or file_digest(file)["sha256"] != recorded_digest:
            problem = "is not what was written" if file.is_file() else "is missing"
            raise DualHeadError(
                f"'{file}' {problem}. Delete it and run the same 'dual-head cache' command again: it writes only that."
            )
    if not manifest["complete"]:
        raise DualHeadError(f"'{folder}' is whole as far as it goes, but not finished. Run the same command again.")
    return len(digests)
