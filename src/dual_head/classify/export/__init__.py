"""Classifiers for those who do not have this library."""
