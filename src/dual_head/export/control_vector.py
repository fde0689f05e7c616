"""Control vectors: steering vectors in a GGUF, as repeng writes them and llama.cpp reads them.

    general.architecture    controlvector
    direction.I [d], fp32   added to what decoder layer I gives, I = 0 for the first       here: layer I + 1

It knows files, models and steering vectors, and nothing of what they were computed from.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dual_head.backbone.gguf import READING_ERRORS
from dual_head.errors import DualHeadError, require
from dual_head.export.folder import merge_identity
from dual_head.export.merge import Folded
from dual_head.files.places import CHECKSUMS, MERGE_FILE, checksums
from dual_head.guides import kind_of
from dual_head.guides.steering import Steering, SteeringConfig
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha

ARCHITECTURE = "controlvector"
FORM = "control_vector"
FILE = "control_vector.gguf"
DIRECTION = re.compile(r"direction\.(\d+)")


def read_control_vector(file: str | Path) -> dict[int, Tensor]:
    """The vectors {layer: [d]} of a file, layers counted from 1. Errors: a file that holds none."""
    reader_of: Any = require("gguf", "gguf")
    if not Path(file).is_file():
        raise DualHeadError(f"There is no file '{file}'. Give the path of a control vector (.gguf).")
    try:
        reader = reader_of.GGUFReader(str(file))
        field = reader.fields.get("general.architecture")
        architecture = field.contents() if field else None
        tensors = {x.name: x for x in reader.tensors}
    except READING_ERRORS as error:
        raise DualHeadError(f"'{file}' cannot be read as a GGUF: {error}. Copy it anew.") from error
    vectors = {int(match[1]) + 1: x for name, x in tensors.items() if (match := DIRECTION.fullmatch(name))}
    if architecture != ARCHITECTURE or not vectors or len(vectors) < len(tensors):
        raise DualHeadError(
            f"'{file}' is no control vector but a GGUF of '{architecture}'. As a backbone it is read by "
            "scripts/real_backbone.py."
        )
    return {layer: torch.from_numpy(x.data.copy()).float().flatten() for layer, x in sorted(vectors.items())}


def attach_control_vector(model: AlignedModel, name: str, file: str | Path, *, alpha: float | None = None) -> None:
    """Attach the vectors of a file as a guide that acts on all tokens. Errors: vectors of other layers or widths."""
    vectors = read_control_vector(file)
    width, count = model.backbone.shape.hidden_size, model.backbone.num_layers
    widths = {len(v) for v in vectors.values()}
    if widths != {width} or max(vectors) > count:
        sizes = f"layers to {max(vectors)} of width {', '.join(map(str, sorted(widths)))}"
        raise DualHeadError(
            f"'{file}' has {sizes}, and the backbone has {count} layers of width {width}. "
            "Give the backbone that it was made for."
        )
    model.attach(name, SteeringConfig(layers=[*vectors]), alpha=alpha)
    with torch.no_grad():
        model.guide(name).vectors.copy_(torch.stack([*vectors.values()]))  # type: ignore[operator]


def control_vectors(model: AlignedModel, *, alpha: Alpha = None) -> dict[int, Tensor]:
    """alpha v_l of the steering guide that acts, {layer: [d]}.

    Errors: a guide of another kind, or of the reply's tokens alone; not exactly one that acts, since what two guides
    add to the logits is not what their vectors add to one stream.
    """
    guide, strength = _acting(model, alpha)
    return dict(zip(guide.layers, strength.alpha * guide.vectors.detach().float().cpu(), strict=True))


def _acting(model: AlignedModel, alpha: Alpha) -> tuple[Steering, Folded]:
    """The steering guide that acts, and what is written of it. Errors: see `control_vectors`."""
    strengths, values = model.resolve_alpha(alpha, 1)
    if any(strengths.schedules):
        raise DualHeadError("A control vector has one strength, and alpha follows a schedule. Give a number.")
    if len(strengths.names) != 1:
        acting = ", ".join(strengths.names) or "none"
        raise DualHeadError(f"A control vector is of one guide that acts, not of {acting}. Give --alpha NAME=NUMBER.")
    (name,), guide = strengths.names, model.guide(strengths.names[0])
    if not isinstance(guide, Steering):
        raise DualHeadError(f"The guide '{name}' is no steering vector, so a control vector cannot hold it.")
    if guide.spares_prompts:
        raise DualHeadError(f"'{name}' leaves the prompt as it is (tokens=reply), and a control vector does not.")
    return guide, Folded(name, kind_of(guide), None, values[0, 0].item())


def write_control_vector(model: AlignedModel, folder: Path, *, alpha: Alpha = None) -> Path:
    """Write control_vector.gguf and a record of it into an empty folder.

    Errors: see `control_vectors`; a vector of layer 1, where llama.cpp adds nothing.
    """
    vectors = control_vectors(model, alpha=alpha)
    if 1 in vectors:
        raise DualHeadError(
            "llama.cpp adds nothing to what the first decoder layer gives. Compute the vectors without layer 1."
        )
    library: Any = require("gguf", "gguf")
    file = folder / FILE
    writer = library.GGUFWriter(str(file), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", str(model.backbone.config.get_text_config(decoder=True).model_type))
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer - 1}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    record = {**control_vector_identity(model, alpha), CHECKSUMS: checksums([file])}
    (folder / MERGE_FILE).write_text(json.dumps(record, indent=2))
    return file


def control_vector_identity(model: AlignedModel, alpha: Alpha) -> dict[str, Any]:
    """What makes a control vector this one: the guide, its strength and vectors, and the backbone."""
    return merge_identity(model, [_acting(model, alpha)[1]], FORM)
