"""Model files as they lie on disk: GGUF, checkpoint folders, packed folders."""
