"""The folder of a merged model: a plain Hugging Face checkpoint with a model card and a record of what it holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from dual_head import __version__
from dual_head.backbone.fingerprint import digest, sketch
from dual_head.backbone.load import auto_class
from dual_head.export.merge import Folded, folded, merge
from dual_head.files.places import (
    CHECKSUMS,
    MERGE_FILE,
    MODEL_FILES,
    atomic_folder,
    checksums,
    require_empty,
    weights_in,
)
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the folded guides, what untying the embeddings costs, and all bytes on disk."""

    folded: list[Folded]
    untied_bytes: int
    bytes: int


def export(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    alpha: Alpha = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Merge and write checkpoint, tokenizer and model card to `output_dir`, all of it or nothing.

    source: where the guides came from, for the card. The same merge that is there already is left as it is. Errors:
    see `merge`; another tokenizer than the guides'; a folder that is not empty, without overwrite; a disk that is full.
    """
    output = Path(output_dir)
    previous = already_merged(model, output, alpha=alpha, source=source, overwrite=overwrite)
    if previous is not None:
        return previous
    model.require_same_tokenizer(tokenizer)
    with atomic_folder(output, replaces=MODEL_FILES if overwrite else ()) as staging:
        return write_merged(model, tokenizer, staging, alpha=alpha, source=source)


def already_merged(
    model: AlignedModel, output: Path, *, alpha: Alpha, source: str | None, overwrite: bool, form: str | None = None
) -> Exported | None:
    """The same merge, where the folder holds it already; None where it may be written. Errors: it holds other files."""
    parts = folded(model, alpha=alpha)
    reads = (source, model.config.backbone_name_or_path, model.backbone.config._name_or_path)
    identity = merge_identity(model, parts, form)
    if require_empty(output, record=MERGE_FILE, identity=identity, overwrite=overwrite, reads=reads):
        return Exported(parts, 0 if form else _untied_bytes(model.backbone.lm), bytes_in(output))
    return None


def write_merged(
    model: AlignedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, alpha: Alpha, source: str | None
) -> Exported:
    """Write a merge into an empty folder; see `export`."""
    merged, parts = merge(model, alpha=alpha), folded(model, alpha=alpha)
    # Written apart: transformers loads some generation configs with a warning and refuses to save them.
    generation_config, merged.generation_config = merged.generation_config, GenerationConfig()
    merged.save_pretrained(folder)
    if generation_config is not None:
        generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card(model, parts, source=source), encoding="utf-8")
    record = {**merge_identity(model, parts), CHECKSUMS: checksums(weights_in(folder))}
    (folder / MERGE_FILE).write_text(json.dumps(record, indent=2))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes it private; another user's server reads it too
    return Exported(parts, _untied_bytes(model.backbone.lm), bytes_in(folder))


def merge_identity(model: AlignedModel, parts: Sequence[Folded], form: str | None = None) -> dict[str, Any]:
    """What makes a merge this one: guides, strengths, backbone, dtype, and its form where that is no checkpoint."""
    tensors = {name: sketch(tensor) for name, tensor in model.stored().items() if tensor.is_floating_point()}
    return {
        "backbone": model.backbone.fingerprint().short,
        "guides": [asdict(part) for part in parts],
        "weights": digest([tensors], 16),
        "dtype": str(model.dtype),
        **({"form": form} if form else {}),
    }


def _untied_bytes(lm: PreTrainedModel) -> int:
    """What an lm_head of its own costs where it was tied to the embeddings."""
    head: Any = lm.get_output_embeddings()
    embedding: Any = lm.get_input_embeddings()
    return head.weight.numel() * head.weight.element_size() if head.weight is embedding.weight else 0


def bytes_in(folder: Path) -> int:
    """How many bytes the files of a folder have together."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def card(model: AlignedModel, parts: Sequence[Folded], *, source: str | None = None) -> str:
    """Write the model card: front matter, what was merged, how to load it, and whose licence applies."""
    backbone = model.config.backbone_name_or_path
    # The path of a local folder is not a name on the hub, so the card leaves it out.
    base_model = [f"base_model: {backbone}"] if backbone and _shown(backbone) == backbone else []
    title = f"`{_shown(backbone)}`" if backbone else f"a {type(model.backbone.lm).__name__}"
    training = model.config.training or {}
    loader = auto_class(model.backbone.config).__name__
    labels = {"method": training.get("method"), "trained on": training.get("dataset")}
    facts = [f"- {label}: `{_shown(str(value))}`" for label, value in labels.items() if value]
    rows = [f"| {p.name} | {p.kind} | {p.alpha:g} | {p.rank or 'full'} |" for p in parts]
    lines = [
        "---",
        *base_model,
        "library_name: transformers",
        "tags: [dual-head, merged]",
        "---",
        "",
        f"# {title}, aligned",
        "",
        f"{title} with guides folded into its lm_head by dual-head {__version__}"
        + (f", from `{_shown(source)}`." if source else "."),
        "Everything before the lm_head is the backbone's own.",
        "",
        "| guide | kind | alpha | rank |",
        "|---|---|---|---|",
        *(rows or ["| none acts | | 0 | |"]),
        "",
        *(facts or ["The guides' method and data were not recorded."]),
        "",
        "It loads with transformers alone:",
        "",
        "```python",
        f"from transformers import {loader}, AutoTokenizer",
        "",
        f"model = {loader}.from_pretrained(FOLDER)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "```",
        "",
        "The strength alpha is fixed now: for another, merge again, or use the guides themselves.",
        "The licence of the backbone applies to this checkpoint too.",
        "",
    ]
    return "\n".join(lines)


def _shown(name: str) -> str:
    """A name for other readers: of a local folder only its last part."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
