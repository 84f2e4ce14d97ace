"""Formats of model files on disk: GGUF, checkpoint folders, packed folders."""
