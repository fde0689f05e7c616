"""Benchmarks: where questions are published, what a row says, and what is made of the answers."""
