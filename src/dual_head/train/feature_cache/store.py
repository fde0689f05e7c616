"""A feature cache on disk: what its files hold, how numbers are stored, and whether a file is whole.

    manifest.json          whose features these are, and every shard with its checksum
    features-00000.*       pairs to train on: .safetensors, and .json with its checksum from the moment it is whole
    held_out-00000.*       pairs to evaluate on
    head.safetensors       what of the backbone is outside its decoder; config.json and the tokenizer beside it

It knows tensors and files; no backbone, no data set and no training.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dual_head.backbone.fingerprint import Fingerprint, digest
from dual_head.data import LABEL, columns_of
from dual_head.errors import DualHeadError
from dual_head.files.places import altered, atomic_folder, file_digest
from dual_head.files.reading import read_json, reading
from dual_head.options import build, fit

VERSION = 1
MANIFEST_FILE, HEAD_FILE = "manifest.json", "head.safetensors"
DIGEST = "digest"  # of a manifest or of the record beside a shard, in it
PARTS = {"train": "features", "held_out": "held_out"}  # what the names of their shards begin with
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
HIDDEN = "hidden"  # the tensor of what the lm_head reads
RESPONSE, ALL = "response", "all"  # positions: those that predict a response token, or every token
# The entries of every manifest and their types; its digest tells whether one was altered since.
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
WRITE_AGAIN = "Delete it and run the same 'dual-head cache' command again: it writes only that."


@dataclass(frozen=True)
class Needs:
    """What guides read of a backbone: every position or those of responses, and which layers by number."""

    positions: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is kept of every token: positions, {tensor: width} of `HIDDEN` and `layer_name(i)`, and the stored dtype."""

    positions: str
    widths: dict[str, int]
    dtype: str

    def rows(self, lengths: Tensor) -> Tensor:
        """Rows of pairs whose prompt, chosen and rejected lengths are [n, 3]."""
        return lengths.sum(1) if self.positions == ALL else lengths[:, 1:].sum(1)

    @property
    def layers(self) -> dict[int, str]:
        """The layers that are kept beside the last, each with the name of its tensor."""
        return {int(name.split(".")[1]): name for name in self.widths if name != HIDDEN}

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


def layer_name(index: int) -> str:
    """Name the tensor of a layer's hidden states; those of the last layer are `HIDDEN`."""
    return f"layers.{index}"


def scale_name(name: str) -> str:
    """Name the scales of a tensor that is stored as int8."""
    return f"{name}.scale"


# ---- numbers -----------------------------------------------------------------------------------------------


def pack(name: str, x: Tensor, dtype: str) -> dict[str, Tensor]:
    """Store rows [n, d]: cast, or for int8 divided by a scale per row so that the largest is 127."""
    if dtype != "int8":
        return {name: x.to(STORED[dtype])}
    x = x.float()
    scale = x.abs().amax(-1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return {name: (x / scale[:, None]).round().to(torch.int8), scale_name(name): scale}


def unpack(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows [n, d] as `pack` was given them, up to rounding, in `dtype`."""
    return x.to(dtype) if scale is None else (x.float() * scale[:, None]).to(dtype)


# ---- files -------------------------------------------------------------------------------------------------


def shard_name(part: str, index: int) -> str:
    """Name a shard, without what its two files end in."""
    return f"{PARTS[part]}-{index:05d}"


def publish(folder: Path, name: str, tensors: Mapping[str, Tensor], *, pairs: int, rows: int, data: str) -> Shard:
    """Write a shard and, beside it, its record with a checksum: both or neither."""
    with atomic_folder(folder) as staging:
        file = staging / f"{name}.safetensors"
        save_file({key: x.contiguous() for key, x in tensors.items()}, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors makes it private
        shard = Shard(file.name, pairs, rows, **file_digest(file), data=data)
        (staging / f"{name}.json").write_text(json.dumps(_sealed(asdict(shard)), indent=2))
    return shard


def read_record(folder: Path, name: str) -> Shard | None:
    """The record beside a shard; None where there is none, or it was altered. The shard's bytes are not read."""
    try:
        values = read_json(folder / f"{name}.json", "")
        if not _is_sealed(values):
            return None
        return build(Shard, {key: value for key, value in values.items() if key != DIGEST})
    except DualHeadError:
        return None


def forget_altered(folder: Path) -> list[str]:
    """Forget shards whose bytes are not those that were written, so that they are written again; return their names."""
    names = [file.stem for part in PARTS.values() for file in folder.glob(f"{part}-*.json")]
    shards = [shard for name in names if (shard := read_record(folder, name))]
    forgotten = altered(folder, {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards})
    for file in forgotten:
        (folder / file).with_suffix(".json").unlink()
    return forgotten


def pairs_digest(pairs: Iterable[Mapping[str, Any]]) -> str:
    """Hash token ids of pairs in their order, and labels of single replies: equal hashes mean equal pairs."""
    content = hashlib.sha256()
    for pair in pairs:
        ids = [pair[column] for column in columns_of(pair)]
        label = [int(pair[LABEL])] if LABEL in pair else []
        numbers = torch.tensor([*map(len, ids), *ids[0], *ids[1], *ids[2], *label], dtype=torch.int32)
        content.update(numbers.numpy().tobytes())
    return content.hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into a folder, which is one that takes its place whole where the manifest counts."""
    (folder / MANIFEST_FILE).write_text(json.dumps(_sealed(manifest), indent=2) + "\n")


def _sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, DIGEST: digest({key: value for key, value in values.items() if key != DIGEST})}


def _is_sealed(values: Mapping[str, Any]) -> bool:
    """Whether values are those that were sealed; ones without a digest are taken as they are."""
    return DIGEST not in values or values == _sealed(values)


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
            manifest.setdefault("learns_from", "pairs")
    if version != VERSION:
        raise DualHeadError(
            f"'{folder}' is a feature cache of format {version}, and this version reads {VERSION}. "
            "Write it again with --restart."
        )
    return manifest


def _require_unaltered(manifest: Mapping[str, Any]) -> None:
    if not _is_sealed(manifest):
        raise ValueError("it was altered after it was written")
    for key, kind in MANIFEST_TYPES.items():
        fit(manifest[key], kind, key)
    Fingerprint.from_dict(manifest["backbone"]["fingerprint"])
    for part in PARTS:
        for shard in manifest["parts"][part]["shards"]:
            build(Shard, shard)


def require_manifest(folder: str | Path) -> dict[str, Any]:
    """Read a folder's manifest. Errors: see `read_manifest`; the folder is not a feature cache."""
    manifest = read_manifest(folder)
    if manifest is None:
        problem = f"'{folder}' is not a feature cache: it has no {MANIFEST_FILE}."
        raise DualHeadError(f"{problem} Write one: dual-head cache.")
    return manifest


def remove_shards(folder: Path) -> None:
    """Delete a cache's shards, and no file beside them; by the manifest it is known as a cache."""
    for name in PARTS.values():
        for file in folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].*"):
            if file.suffix in (".safetensors", ".json"):
                file.unlink()


def require_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compute checksums again. Errors: the first file, {name: SHA-256}, that differs from what was written."""
    for name, written in digests.items():
        file = folder / name
        with reading(f"Cannot read '{file}'", WRITE_AGAIN):
            if not file.is_file() or file_digest(file)["sha256"] != written:
                problem = "is not what was written" if file.is_file() else "is missing"
                raise DualHeadError(f"'{file}' {problem}. {WRITE_AGAIN}")


def verify(folder: str | Path) -> int:
    """Compute every checksum again and return how many files there are. Errors: the first that differs, by name."""
    manifest = require_manifest(folder)
    shards = [shard for part in manifest["parts"].values() for shard in part["shards"]]
    digests = {**manifest["files"], **{shard["file"]: shard["sha256"] for shard in shards}}
    require_files(Path(folder), digests)
    if not manifest["complete"]:
        raise DualHeadError(f"'{folder}' is whole as far as it goes, but not finished. Run the same command again.")
    return len(digests)
