"""Gemma's vocabulary as far as 300 hard strings need it: every token that is a part of one, with its id and score."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from edged.models.formats.gguf import GgufFile
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.sources import codec_from_gguf

_FILE = json.loads(Path(__file__).with_name("gemma-token-ids.json").read_text("utf-8"))
ROWS: list[tuple[str, list[int]]] = [(text, ids) for text, ids in _FILE["rows"]]
"""Texts with the ids that llama.cpp gives for the whole vocabulary, control tokens in them obeyed."""


def gemma_file(**changes: Any) -> GgufFile:
    """A GGUF file's metadata; tokens that no text needs are unused ones. `changes` go into `tokenizer.ggml.…`."""
    tokens = [f"\uffff{at}" for at in range(_FILE["count"])]
    types, scores = [5] * len(tokens), [0.0] * len(tokens)
    for at, text, kind, score in _FILE["tokens"]:
        tokens[at], types[at], scores[at] = text, kind, score
    given = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_bos_token": True,
        "add_space_prefix": False,
    }
    return fake_file({f"tokenizer.ggml.{key}": value for key, value in (given | changes).items()})


@cache
def gemma_codec() -> TextCodec:
    """The tokenizer of `gemma_file()`."""
    return codec_from_gguf(gemma_file())


def fake_file(metadata: dict[str, object]) -> GgufFile:
    """A GGUF file of metadata alone, that is not on disk."""
    return GgufFile(Path("fake.gguf"), None, metadata, {})  # type: ignore[arg-type]
