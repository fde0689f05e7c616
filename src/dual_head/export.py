"""Merge and export: a model whose lm_head holds its guides, as a plain Hugging Face checkpoint.

    lm_head' (h) = lm_head(h + sum_k a_k edit_k) + sum_k a_k direction_k / s,      as `fold` has it

It knows models, configs and folders; which guides fold, and how, is elsewhere.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from dual_head import __version__
from dual_head.checkpoint import atomic_folder
from dual_head.errors import DualHeadError
from dual_head.fold import acting_strengths, fold, plain_head
from dual_head.guides import kind_of
from dual_head.model import AlignedModel
from dual_head.strength import Alpha

# What would still be read, or be in the way, beside newly written weights.
OLD_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*", "adapter_config.json")


@dataclass(frozen=True)
class Folded:
    """One guide as it went into the lm_head; rank None is full."""

    name: str
    kind: str
    rank: int | None
    alpha: float


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the folded guides, what untying the embeddings costs, and all bytes on disk."""

    folded: list[Folded]
    untied_bytes: int
    bytes: int


@torch.no_grad()
def merge(model: AlignedModel, *, alpha: Alpha = None) -> PreTrainedModel:
    """Fold the guides that act at `alpha` into the lm_head of a new, plain model.

        W' = W (I + sum a E) + sum a D / s,  b' = b + W sum a c + sum a c' / s

    alpha: None for the defaults, a number, or {name: number}; a guide at 0 is left out. The new model is of the
    backbone's own class and shares the decoder's weights with it in memory, so it is frozen: export and load
    it, or deepcopy it, to train. Only its lm_head [V, d] is new, and tied to nothing. Errors: what is no linear
    map of h, or cannot be held by a plain lm_head, is refused with the reason.
    """
    strengths = acting_strengths(model, alpha)
    head = plain_head(model.backbone)
    weight, bias = fold(model, strengths, head)
    lm = model.backbone.lm
    merged = _shared_copy(lm)
    own = merged.get_output_embeddings()
    assert isinstance(own, nn.Linear)
    own.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        own.bias = nn.Parameter(bias, requires_grad=False)
    _untie(merged.config)
    merged.all_tied_weights_keys = merged.get_expanded_tied_weights_keys(all_submodels=True)
    return merged


def export(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    alpha: Alpha = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Merge and write checkpoint, tokenizer and model card to `output_dir`, config.json last.

    source: where the guides came from, for the card. Errors: see `merge`; another tokenizer than the guides'; a
    folder that is not empty, without overwrite; a disk that is full.
    """
    output = Path(output_dir)
    lm = model.backbone.lm
    require_place(output, overwrite, (source, model.config.backbone_name_or_path, lm.config._name_or_path))
    model.require_same_tokenizer(tokenizer)
    merged = merge(model, alpha=alpha)
    parts = folded(model, alpha=alpha)
    with atomic_folder(output) as staging:
        try:
            # Written apart: transformers loads some generation configs with a warning and refuses to save them.
            kept, merged.generation_config = merged.generation_config, GenerationConfig()
            merged.save_pretrained(staging)
            if kept is not None:
                kept.to_json_file(staging / GENERATION_CONFIG_NAME)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(None, str(error)) from error
        tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card(model, parts, source=source), encoding="utf-8")
        for file in staging.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes it private; another user's server reads it too
        size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
        if overwrite:
            _remove_old_model(output)
    own = merged.get_output_embeddings()
    assert own is not None
    tied = lm.get_input_embeddings().weight is lm.get_output_embeddings().weight  # pyright: ignore
    untied = own.weight.numel() * own.weight.element_size() if tied else 0
    return Exported(parts, untied, size)


def folded(model: AlignedModel, *, alpha: Alpha = None) -> list[Folded]:
    """Say which guides act at `alpha` and what they are, in the order of the config."""
    acting = [(name, model.guide(name), a) for name, a in acting_strengths(model, alpha).items()]
    return [Folded(name, kind_of(guide), guide.config.as_dict().get("rank"), a) for name, guide, a in acting]


def require_place(output: Path, overwrite: bool, sources: Sequence[str | None] = ()) -> None:
    """Refuse a folder that is not empty, and ever to write over what is being read."""
    for source in sources:
        if source and Path(source).is_dir() and Path(source).resolve() == output.resolve():
            raise DualHeadError(f"'{output}' is what the merge reads from. Choose another output folder.")
    held = sorted(file.name for file in output.glob("*") if not file.name.startswith(".")) if output.is_dir() else []
    if held and not overwrite:
        raise DualHeadError(
            f"'{output}' is not empty (it holds {', '.join(held[:3])}). Choose another output folder, or replace the "
            "model in it with --overwrite (overwrite=True in Python)."
        )


def card(model: AlignedModel, parts: Sequence[Folded], *, source: str | None = None) -> str:
    """Write the model card: front matter, what was merged, how to load it, and whose licence applies."""
    backbone = model.config.backbone_name_or_path
    # A folder's path means nothing to others, and is no name on the hub.
    base_model = [f"base_model: {backbone}"] if backbone and _shown(backbone) == backbone else []
    named = f"`{_shown(backbone)}`" if backbone else f"a {type(model.backbone.lm).__name__}"
    training = model.config.training or {}
    recorded = {"method": training.get("method"), "trained on": training.get("dataset")}
    said = [f"- {what}: `{_shown(str(value))}`" for what, value in recorded.items() if value]
    rows = [f"| {p.name} | {p.kind} | {p.alpha:g} | {p.rank or 'full'} |" for p in parts]
    lines = [
        "---",
        *base_model,
        "library_name: transformers",
        "tags: [dual-head, merged]",
        "---",
        "",
        f"# {named}, aligned",
        "",
        f"{named} with guides folded into its lm_head by dual-head {__version__}"
        + (f", from `{_shown(source)}`." if source else "."),
        "Everything before the lm_head is the backbone's own.",
        "",
        "| guide | kind | alpha | rank |",
        "|---|---|---|---|",
        *(rows or ["| none acts | | 0 | |"]),
        "",
        *(said or ["The guides' method and data were not recorded."]),
        "",
        "It loads with transformers alone:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "```",
        "",
        "The strength alpha is fixed now: for another, merge again, or use the guides themselves.",
        "The licence of the backbone applies to this checkpoint too.",
        "",
    ]
    return "\n".join(lines)


# ---- a new model, and its folder ---------------------------------------------------------------------------


def _shared_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules and configs, but not its tensors: new parameters over the same memory."""
    memo: dict[int, object] = {
        # A quantised parameter carries more than its data, and is handed on as it is.
        id(p): nn.Parameter(p.detach(), requires_grad=False) if type(p) is nn.Parameter else p
        for p in lm.parameters()
    }
    memo |= {id(buffer): buffer for buffer in lm.buffers()}
    return copy.deepcopy(lm, memo)


def _untie(config: PreTrainedConfig) -> None:
    """Say in a config and those nested in it that the lm_head is its own."""
    config.tie_word_embeddings = False
    for name in config.sub_configs:
        nested = getattr(config, name, None)
        if isinstance(nested, PreTrainedConfig):
            _untie(nested)


def _remove_old_model(folder: Path) -> None:
    """Remove the weights of a model that is being replaced: shards that stayed would be read instead."""
    for pattern in ("config.json", *OLD_WEIGHTS):  # without a config what is left is no model, should we be killed here
        for file in folder.glob(pattern):
            file.unlink()


def _shown(name: str) -> str:
    """A name for others to read: of a folder here only its own name."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
