"""A tiny classifier on disk, with random weights everywhere, as training leaves it."""

import random
from pathlib import Path
from typing import Any

import torch
from files import ASKED, BAD, GOOD, word_tokenizer, write_backbone

from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.classify import TextForm
from dual_head.classify.model import DualHeadReasoningModel

VOCABULARY = [*GOOD, *BAD, *ASKED]
LONGEST = 24  # tokens of an input


def write_dhrd(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("no", "yes"),
    text: dict[str, Any] | None = None,
    seed: int = 0,
    **options,
) -> Path:
    """Save a backbone and, in folder/classifier, a classifier with its tokenizer; give the latter's folder."""
    backbone = folder / "backbone"
    if not backbone.exists():
        write_backbone(backbone, spread=0.2)
    tokenizer = word_tokenizer()
    written = {"form": TextForm().as_dict(), "template": None, "max_input_length": LONGEST, "truncate_inputs": "no"}
    torch.manual_seed(seed)
    model = DualHeadReasoningModel.from_backbone(
        str(backbone),
        labels=list(labels),
        text=written | (text or {}),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        **{"tune": "lora", **options},
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.startswith("head."):
            torch.nn.init.normal_(parameter, std=0.3)
    place = folder / f"classifier{seed or ''}"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def some_texts(count: int, *, longest: int = LONGEST - 1, seed: int = 0) -> list[str]:
    """Texts of any number of words up to `longest`, none included."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=rng.randint(0, longest))) for _ in range(count)]
