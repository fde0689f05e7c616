"""Tensors only: masks, products and the vocabulary axis. Nothing here knows a model, a guide or a loss."""
