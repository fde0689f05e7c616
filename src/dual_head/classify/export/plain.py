"""A classifier for those who do not have this library: a plain transformers checkpoint, or an ONNX file.

    plain   XForSequenceClassification: the decoder with its adapter folded in, and a linear head
    ONNX    input_ids, attention_mask [B, T] -> logits [B, K], any head, any decoder that torch can trace

Both are loaded back and compared with the classifier before anything is left on disk. It knows models, tokenizers and
folders, and no data.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AddedToken, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from dual_head import __version__
from dual_head.backbone.dtypes import FLOATS
from dual_head.backbone.fingerprint import digest, sketch, tokenizer_fingerprint
from dual_head.classify.config import DualHeadReasoningConfig
from dual_head.classify.export.parity import Pooled, allowance, check_merged, largest, scored, tried
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.tune import fold_adapters
from dual_head.data.conversation import first_ids
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.export.folder import bytes_in
from dual_head.files.places import CHECKSUMS, MODEL_FILES, atomic_folder, checksums, require_empty, weights_in

PAD = "<|dual_head_pad|>"  # nothing that anybody writes
EXPORT_FILE = "export.json"  # what was exported: one that is done is not repeated
LEFT = "Pad on the right, as its tokenizer does: this class counts positions from the padding on."


@dataclass(frozen=True)
class Exported:
    """What an export wrote: of which class, how large, how far its logits are off, and what its user should know."""

    architecture: str
    bytes: int
    difference: float
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def export(
    model: DualHeadReasoningModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    temperature: float = 1.0,
) -> Exported:
    """Write a classifier as `AutoModelForSequenceClassification` loads it, with tokenizer and model card.

        W' = W + s B A   in every layer with an adapter;   logits = W_score h at the last token that is not padding

    dtype: of the weights; temperature: of the calibration, which logits are left without and its user is told.
    transformers knows padding by its id, so a tokenizer without one, or whose padding may end a text, gets a new
    token for it. Errors: an mlp head, a decoder that transformers has no such class for, a quantised one, another
    tokenizer, a folder that is not empty without overwrite, logits that are not the same.
    """
    output = Path(folder)
    if dtype not in FLOATS:
        raise DualHeadError(f"Unknown dtype '{dtype}'.{did_you_mean(dtype, FLOATS)}")
    require_plain(model.config)
    require_same_tokenizer(model.config, tokenizer)
    identity = identity_of(model, dtype)
    reads = (model.config._name_or_path, model.config.backbone_name_or_path)
    finished = require_empty(output, record=EXPORT_FILE, identity=identity, overwrite=overwrite, reads=reads)
    tokenizer, notes = own_padding(tokenizer, model.config, ends=model.decoder.lm.config.eos_token_id)
    notes += text_notes(tokenizer, model.config, temperature)
    pad: Any = tokenizer.pad_token_id
    pooled = Pooled(merged(model.decoder.lm), model.head)
    check_merged(model, pooled)
    for parameter in pooled.decoder.parameters():  # and no buffer: rotary frequencies stay exact
        parameter.data = parameter.data.to(getattr(torch, dtype))
    plain = _plain(model, pooled.decoder.lm, pad)
    if finished:
        difference, left_too = _compared(model, pooled, output, pad)
        return Exported(type(plain).__name__, bytes_in(output), difference, [*notes, *([] if left_too else [LEFT])])
    with atomic_folder(output, replaces=MODEL_FILES if overwrite else ()) as staging:
        plain.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        difference, left_too = _compared(model, pooled, staging, pad)
        notes += [] if left_too else [LEFT]
        (staging / "README.md").write_text(card(model, notes), encoding="utf-8")
        record = {**identity, CHECKSUMS: checksums(weights_in(staging))}
        (staging / EXPORT_FILE).write_text(json.dumps(record, indent=2))
        for file in staging.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes it private; another user's server reads it too
        return Exported(type(plain).__name__, bytes_in(staging), difference, notes)


def identity_of(model: DualHeadReasoningModel, form: str) -> dict[str, Any]:
    """What makes an export this one: the classifier's tensors and settings, and the form it is written in."""
    tensors = {name: sketch(x) for name, x in model.stored().items() if x.is_floating_point()}
    settings = json.loads(model.config.to_json_string())
    settings.pop(CHECKSUMS)  # of files; the tensors are named here
    return {"classifier": digest([settings, tensors], 16), "backbone": model.config.backbone_fingerprint, "form": form}


def require_plain(config: DualHeadReasoningConfig) -> type[PreTrainedModel]:
    """Find the class of transformers that holds such a classifier. Errors: an mlp head, no such class."""
    if config.head != "linear":
        raise DualHeadError(
            f"The class head is '{config.head}', and transformers' classes have a linear one. Export it as ONNX "
            "(--onnx; export_onnx in Python), or train with --head linear."
        )
    kind: Any = type(config.backbone_config)
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        name = getattr(config.backbone_config, "model_type", kind.__name__)
        raise DualHeadError(
            f"transformers has no sequence classifier for '{name}' models. Export it as ONNX (--onnx; export_onnx in "
            "Python)."
        )
    model_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind]
    return model_class


def require_same_tokenizer(config: DualHeadReasoningConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids mean other tokens than in training."""
    if config.tokenizer_fingerprint not in (None, tokenizer_fingerprint(tokenizer)):
        raise DualHeadError(
            "This is not the tokenizer that the classifier was trained with. Load the one saved beside the classifier."
        )


def merged(lm: PreTrainedModel) -> PreTrainedModel:
    """Copy a decoder to the CPU in fp32 with its adapters folded into its weights, W' = W + s B A.

    Weights that stay as they are share memory with the original, so the copy is to be read, not trained. Errors:
    quantised or offloaded weights.
    """
    tensors = [*lm.parameters(), *lm.buffers()]
    if any(p.is_meta or not p.is_floating_point() for p in lm.parameters()):
        raise DualHeadError(
            "The backbone is quantised or offloaded, and an export needs its weights. Load the classifier with "
            "dtype='float32' and without device_map."
        )
    memo: dict[int, Any] = {
        id(x): nn.Parameter(x.detach(), requires_grad=False) if isinstance(x, nn.Parameter) else x for x in tensors
    }
    copied: Any = copy.deepcopy(lm, memo).cpu().float()
    fold_adapters(copied, copy=True)
    return copied


def own_padding(
    tokenizer: PreTrainedTokenizerBase, config: DualHeadReasoningConfig, *, ends: Any = None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Copy a tokenizer, on the right of whose texts stands padding that no text ends in; and notes for its user.

    ends: further ids that may end a text, as a config has them.
    """
    tokenizer, notes = copy.deepcopy(tokenizer), []
    first = first_ids(tokenizer)
    several = ends if isinstance(ends, (list, tuple)) else [ends]
    ending = [tokenizer.eos_token_id, tokenizer.unk_token_id, *several, *first]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ending:
        tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})  # type: ignore[arg-type]
        notes.append(
            f"Padding is the new token {PAD}, id {tokenizer.pad_token_id}: the tokenizer had none of its own that no "
            "text ends in, and this class pools before the padding."
        )
    return reading_as_trained(tokenizer, config), notes


def reading_as_trained(tokenizer: PreTrainedTokenizerBase, config: DualHeadReasoningConfig) -> PreTrainedTokenizerBase:
    """Copy a tokenizer that, once saved, reads and cuts texts as training did, and pads them on the right."""
    tokenizer, text = copy.deepcopy(tokenizer), config.text or {}
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left" if text.get("truncate_inputs") == "start" else "right"
    tokenizer.split_special_tokens = True  # one that a text says is text, as in training
    settings = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side", "split_special_tokens")}
    tokenizer.init_kwargs |= settings  # else not saved
    if limit := text.get("max_input_length"):
        tokenizer.model_max_length = limit
    return tokenizer


def text_notes(tokenizer: PreTrainedTokenizerBase, config: DualHeadReasoningConfig, temperature: float) -> list[str]:
    """What one must know to turn text into ids, and logits into probabilities."""
    notes, text = [], config.text or {}
    if limit := text.get("max_input_length"):
        notes.append(f"It was trained on inputs of at most {limit} tokens; cut longer ones (truncation=True).")
    if text.get("template"):
        notes.append(f"Inputs were written as: {text['template']}")
    first: list[Any] = first_ids(tokenizer)
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if whole != first + bare:  # type: ignore[operator]
        notes.append(
            "This tokenizer puts special tokens behind a text, and training did not. Tokenise with "
            f"add_special_tokens=False and put the ids {first} in front."
        )
    if temperature != 1:
        notes.append(f"Divide the logits by {temperature:.4g} for calibrated probabilities.")
    return notes


def card(model: DualHeadReasoningModel, notes: list[str]) -> str:
    """Write the model card: what it tells apart, how to load it, and what to know."""
    named = ", ".join(str(name) for name in (model.config.id2label or {}).values())
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [dual-head, classification]",
        "---",
        "",
        f"# A classifier of {model.config.num_labels} labels",
        "",
        f"Labels: {named}. Trained and exported with dual-head {__version__}; it loads with transformers alone:",
        "",
        "```python",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        "model = AutoModelForSequenceClassification.from_pretrained(FOLDER)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "```",
        "",
        *(f"- {note}" for note in notes),
        "- The licence of the backbone applies to this checkpoint too.",
        "",
    ]
    return "\n".join(lines)


# ---- the plain model ---------------------------------------------------------------------------------------


def _plain(model: DualHeadReasoningModel, lm: PreTrainedModel, pad: int) -> PreTrainedModel:
    """Put a decoder's weights and a linear head into transformers' class for both."""
    kind = require_plain(model.config)
    config = copy.deepcopy(lm.config)
    config.id2label, config.label2id = model.config.id2label, model.config.label2id
    config.problem_type = model.config.problem_type or "single_label_classification"
    text = config.get_text_config(decoder=True)
    config.pad_token_id = text.pad_token_id = pad
    state = {f"{kind.base_model_prefix}.{name}": x for name, x in lm.base_model.state_dict().items()}
    embedding: Any = lm.get_input_embeddings()
    if pad >= len(embedding.weight):
        text.vocab_size = pad + 1
        weight_name = next(name for name, x in lm.base_model.named_parameters() if x is embedding.weight)
        # Padding is masked, so that its embedding is never read by another token.
        more = embedding.weight.new_zeros(pad + 1 - len(embedding.weight), embedding.weight.shape[1])
        state[f"{kind.base_model_prefix}.{weight_name}"] = torch.cat([embedding.weight, more])
    with torch.device("meta"):
        plain: Any = kind(config)
    head = model.head.score.weight
    missing = {name: x for name, x in plain.state_dict().items() if name not in state}
    if [x.shape for x in missing.values()] != [head.shape]:
        raise DualHeadError(
            f"{kind.__name__} has more than a linear head on the decoder ({', '.join(missing)}). Export as ONNX."
        )
    state[next(iter(missing))] = head.detach().cpu().to(lm.dtype)
    try:
        plain.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DualHeadError(
            f"{kind.__name__} does not hold the weights of {type(lm).__name__}: {str(error).splitlines()[-1].strip()} "
            "Export as ONNX."
        ) from error
    return plain.eval()


@torch.no_grad()
def _compared(model: DualHeadReasoningModel, pooled: Pooled, folder: Path, pad: int) -> tuple[float, bool]:
    """How far a checkpoint's logits are from the classifier's, and whether they stay so with padding on the left.

    pooled: our own path through the same weights in the same dtype, which differs by far less. Errors: it does not.
    """
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
    off, right = [], []
    for ids, mask in tried(model, pad=pad):
        got = plain(input_ids=ids, attention_mask=mask).logits.float()
        # The embeddings of `pooled` have no row for padding that is new.
        expected = pooled(torch.where(mask.bool(), ids, 0), mask)
        off.append(largest(got - scored(model, ids, mask)))
        right.append(largest(got - expected) <= allowance(expected, plain.dtype))
    if not right[0]:
        raise DualHeadError(
            f"{type(plain).__name__} gives other logits than the classifier: they differ by {off[0]:.2g}, which "
            "rounding does not explain. Nothing was written; export as ONNX, and please report this."
        )
    return off[0], right[1]
