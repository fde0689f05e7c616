"""A small world with an exact reward, and a toy backbone that knows it: the offline default of every example."""

from pathlib import Path

TOY_BACKBONE = Path(__file__).with_name("toy_backbone")
"""Folder of the shipped toy Llama and its tokenizer; made by scripts/train_toy_backbone.py."""
