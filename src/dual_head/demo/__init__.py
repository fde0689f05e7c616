"""A small world with an exact reward, and a toy backbone that knows it: the offline default of every example."""

from pathlib import Path

TOY_BACKBONE = Path(__file__).with_name("toy_backbone")
"""Folder of the shipped toy Llama and its tokenizer; made by scripts/train_toy_backbone.py."""
PUBLISHED_GUIDES = Path(__file__).with_name("guides") / "smollm2"
"""Folder of the published guides of SmolLM2-135M-Instruct, one folder each; guides/smollm2 of the repository."""
