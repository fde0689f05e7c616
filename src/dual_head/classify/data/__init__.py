"""Rows to examples, examples to token ids, token ids to tensors."""
