"""Classifiers on rows whose labels are known."""
