"""Training: a run of a method over preference pairs, its trainer and its step, checkpoints and reports."""
