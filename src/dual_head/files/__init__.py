"""Folders and files: written whole or not at all, held by one process, and refused in words where they are damaged."""
