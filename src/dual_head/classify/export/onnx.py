"""A classifier as an ONNX file: input_ids and attention_mask [B, T] in, logits [B, K] out, for any B and T.

Positions and the token to pool at are computed from the mask inside, so padding may stand on either side and have any
id. It knows models and files, and no data; `onnx`, `onnxscript` and `onnxruntime` are the "onnx" extra.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dual_head import __version__
from dual_head.classify.config import DualHeadReasoningConfig
from dual_head.classify.export.parity import Pooled, allowance, check_merged, largest, scored, tried
from dual_head.classify.export.plain import (
    EXPORT_FILE,
    Exported,
    identity_of,
    merged,
    reading_as_trained,
    require_same_tokenizer,
    text_notes,
)
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.data.conversation import first_ids
from dual_head.errors import DualHeadError, require
from dual_head.export.folder import bytes_in
from dual_head.files.places import CHECKSUMS, MODEL_FILES, atomic_folder, checksums, require_empty, weights_in

NAMES = ("input_ids", "attention_mask")
IN_ONE_FILE = 2**30  # bytes of weights; an ONNX file above two GiB cannot be read, and larger ones get a second file


@torch.no_grad()
def export_onnx(
    model: DualHeadReasoningModel,
    tokenizer: PreTrainedTokenizerBase,
    file: str | Path,
    *,
    overwrite: bool = False,
    temperature: float = 1.0,
) -> Exported:
    """Write a classifier as ONNX in fp32, adapters folded in, with labels (NAME.json) and tokenizer beside it.

    What was written is run by onnxruntime on rows of several lengths, padded on either side. Errors: missing packages,
    another tokenizer, a folder that is not empty without overwrite, a decoder that torch cannot trace, a quantised
    one, logits that are not the same to 1e-4.
    """
    file = Path(file)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")
    if file.suffix != ".onnx":
        raise DualHeadError(f"'{file.name}' does not end in .onnx. Name it '{file.stem}.onnx'.")
    require_same_tokenizer(model.config, tokenizer)
    output, identity = file.parent, identity_of(model, "onnx")
    reads = (model.config._name_or_path, model.config.backbone_name_or_path)
    finished = require_empty(output, record=EXPORT_FILE, identity=identity, overwrite=overwrite, reads=reads)
    network, notes = _network(model), text_notes(tokenizer, model.config, temperature)
    if finished:
        return Exported("ONNX", bytes_in(output), _compared(model, network, file), notes)
    with atomic_folder(output, replaces=MODEL_FILES if overwrite else ()) as staging:
        _trace(network, staging / file.name, type(model.decoder.lm).__name__)
        difference = _compared(model, network, staging / file.name)
        (staging / f"{file.stem}.json").write_text(metadata(model.config, tokenizer, notes), encoding="utf-8")
        reading_as_trained(tokenizer, model.config).save_pretrained(staging)
        record = {**identity, CHECKSUMS: checksums(weights_in(staging))}
        (staging / EXPORT_FILE).write_text(json.dumps(record, indent=2))
        return Exported("ONNX", bytes_in(staging), difference, notes)


def _network(model: DualHeadReasoningModel) -> Pooled:
    lm = merged(model.decoder.lm)
    if lm.config._attn_implementation not in ("sdpa", "eager"):
        lm.set_attn_implementation("eager")  # others are kernels that no other runtime has
    pooled = Pooled(lm, model.head)
    check_merged(model, pooled)
    return pooled


def _trace(network: Pooled, file: Path, model_name: str) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    ids = torch.ones(2, 3, dtype=torch.long)  # any will do: neither size nor value is kept
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    try:
        with _quiet():
            torch.onnx.export(
                network,
                (ids, torch.ones_like(ids)),
                file,
                dynamo=True,
                input_names=list(NAMES),
                output_names=["logits"],
                dynamic_shapes={name: {0: batch, 1: length} for name in NAMES},
                external_data=weights > IN_ONE_FILE,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason: Any = error.__cause__ or error
        raise DualHeadError(
            f"torch cannot trace {model_name}: {str(reason).strip().splitlines()[0]} Export a plain checkpoint "
            "instead, without --onnx."
        ) from error


@torch.no_grad()
def _compared(model: DualHeadReasoningModel, pooled: Pooled, file: Path) -> float:
    """How far onnxruntime's logits are from the classifier's.

    pooled: what was traced, which differs by far less. Errors: it does not.
    """
    runtime: Any = require("onnxruntime", "onnx")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for ids, mask in tried(model, pad=0):
        for rows in (slice(None), slice(0, 1), slice(1, 3)):
            feeds = zip(NAMES, (ids[rows].numpy(), mask[rows].numpy()), strict=True)
            got = torch.from_numpy(session.run(["logits"], dict(feeds))[0])
            expected = pooled(ids[rows], mask[rows])
            if not (difference := largest(got - expected)) <= allowance(expected, torch.float32):
                raise DualHeadError(
                    f"The ONNX file gives other logits than the classifier: they differ by {difference:.2g}, which "
                    "rounding does not explain. Nothing was written; export a plain checkpoint, and please report this."
                )
            worst = max(worst, largest(got - scored(model, ids[rows], mask[rows])))
    return worst


def metadata(config: DualHeadReasoningConfig, tokenizer: PreTrainedTokenizerBase, notes: list[str]) -> str:
    """What a user of the logits needs to know, as JSON: labels in their order, how inputs are written and cut."""
    names: Any = config.id2label
    values = {
        "labels": [names[i] for i in range(len(names))],
        "problem_type": config.problem_type or "single_label_classification",
        "inputs": ["input_ids", "attention_mask"],
        "output": "logits",
        "ids_in_front": first_ids(tokenizer),
        "text": config.text,
        "notes": notes,
        "dual_head": __version__,
    }
    return json.dumps(values, indent=2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch while it traces: its messages call for no action."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    output = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
