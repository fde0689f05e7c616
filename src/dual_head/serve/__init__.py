"""Serving: requests of any strengths in one running batch, over transformers' continuous batching."""
