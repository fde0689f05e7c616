"""Prompts as token ids, under the name that scripts of before import."""

from dual_head.model.generate import encode_prompts

__all__ = ["encode_prompts"]
