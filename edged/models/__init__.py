"""A model on disk: catalog, store with digests, GGUF files, checkpoints, tokenizer. May import core."""
