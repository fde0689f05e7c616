"""Guides at fixed strengths as a LoRA of the lm_head, which PEFT loads, and servers that take such a LoRA.

    C = W' - W = sum_k a_k W E_k + sum_k a_k D_k / s          [V, d], of rank r = sum_k r_k, as `fold` has it
    B A = C        A = Q' [r, d], B = C Q [V, r],  Q: r orthonormal columns that span the rows of C

A hidden-space edit of rank r, and a linear head of rank r, are exact. It knows models and matrices, and no guide.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dual_head.backbone.load import auto_class
from dual_head.errors import DualHeadError, require
from dual_head.export.fold import acting_strengths, head_change, plain_head
from dual_head.export.folder import Exported, bytes_in, merge_identity
from dual_head.export.merge import Folded, folded
from dual_head.files.places import CHECKSUMS, MERGE_FILE, checksums, weights_in
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import Alpha

LORA = "lora"
EXACT = 1e-5  # of a change of the lm_head that may be lost


@torch.no_grad()
def lora_factors(model: AlignedModel, *, alpha: Alpha = None) -> tuple[Tensor, Tensor]:
    """A [r, d] and B [V, r] with B A = the change of the lm_head at `alpha`, in the lm_head's dtype.

    Errors: as of `merge`; a guide of full rank, one with a constant, or none that acts.
    """
    strengths, head = acting_strengths(model, alpha), plain_head(model.backbone)
    parts, (change, shift) = folded(model, alpha=alpha), head_change(model, strengths, head)
    if full := [part.name for part in parts if part.rank is None]:
        raise DualHeadError(
            f"A LoRA has a low rank, and of '{full[0]}' none is known. Train with --rank, or merge a checkpoint."
        )
    if change is None:
        raise DualHeadError("No guide acts at this strength, so there is no LoRA to write. Give --alpha.")
    if shift is not None:
        raise DualHeadError("A guide adds a constant (bias), which a LoRA cannot hold. Train with bias=false.")
    rank = min(sum(part.rank or 0 for part in parts), min(change.shape))
    rows = _row_space(change, rank)
    a, b = rows.T.contiguous(), change @ rows
    lost = ((change - b @ a).norm() / change.norm()).item()
    if not lost <= EXACT:
        raise DualHeadError(
            f"The guides change the lm_head in more than {rank} directions ({lost:.2g} of the change would be lost). "
            "Merge a checkpoint."
        )
    return a.to(head.weight.dtype), b.to(head.weight.dtype).contiguous()


def _row_space(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns [d, r] that span the rows of a matrix [V, d] of that rank, from random ones.

    Each product is made orthonormal before the next: products with C'C would lose directions that are weak beside
    others, as it squares them. Source: Halko et al. 2011, algorithm 4.4.
    """
    noise = torch.randn(len(matrix), rank, generator=torch.Generator().manual_seed(0))
    rows = torch.linalg.qr(matrix.T @ noise.to(matrix)).Q
    columns = torch.linalg.qr(matrix @ rows).Q
    return torch.linalg.qr(matrix.T @ columns).Q


def write_lora(
    model: AlignedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, alpha: Alpha, source: str | None
) -> Exported:
    """Write the adapter as PEFT does, with tokenizer, card and record, into an empty folder."""
    from_peft: Any = require("peft", "peft")
    a, b = lora_factors(model, alpha=alpha)
    parts, name = folded(model, alpha=alpha), _head_name(model.backbone.lm)
    config = from_peft.LoraConfig(
        r=len(a), lora_alpha=len(a), target_modules=[name], task_type="CAUSAL_LM", bias="none", lora_dropout=0.0
    )
    config.base_model_name_or_path = model.config.backbone_name_or_path
    config.inference_mode = True
    config.save_pretrained(str(folder))
    prefix = f"base_model.model.{name}"
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save_pretrained(folder)
    loader = auto_class(model.backbone.config).__name__
    (folder / "README.md").write_text(_card(parts, source, loader), encoding="utf-8")
    record = {**merge_identity(model, parts, LORA), CHECKSUMS: checksums(weights_in(folder))}
    (folder / MERGE_FILE).write_text(json.dumps(record, indent=2))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes it private; another user's server reads it too
    return Exported(parts, 0, bytes_in(folder))


def _head_name(lm: nn.Module) -> str:
    head = lm.get_output_embeddings()  # type: ignore[operator]
    return next(name for name, module in lm.named_modules() if module is head)


def _card(parts: Sequence[Folded], source: str | None, loader: str) -> str:
    rows = "\n".join(f"| {p.name} | {p.kind} | {p.alpha:g} | {p.rank} |" for p in parts)
    origin = f", from `{Path(source).name}`" if source else ""
    return f"""---
library_name: peft
tags: [dual-head, lora]
---

# A LoRA of the lm_head

Guides at fixed strengths{origin}. The tensors before the lm_head are the backbone's.

| guide | kind | alpha | rank |
|---|---|---|---|
{rows}

```python
from peft import PeftModel
from transformers import {loader}

model = PeftModel.from_pretrained({loader}.from_pretrained(BACKBONE), FOLDER)
```

The licence of the backbone applies. The scale of the LoRA is 1; another scale multiplies every strength.
"""
