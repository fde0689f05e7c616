"""Classifiers that learn from rationales and never write one."""

from dual_head.classify.types import NO_LABEL, Example, Label, TextForm, as_shares, classes_of, in_words

__all__ = ["NO_LABEL", "Example", "Label", "TextForm", "as_shares", "classes_of", "in_words"]
