"""Folders and files: written whole or not at all, held by one process, and refused with a remedy if damaged."""
