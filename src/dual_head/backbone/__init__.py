"""The frozen model: hidden states and logits of any decoder, its fingerprint, its checkpoints and its cache."""
