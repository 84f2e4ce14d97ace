"""How a model makes one vector of the hidden states of a text, by its own record.

GGUF files say it in `{architecture}.pooling_type` (llama.cpp: 1 mean, 3 last), folders of sentence-transformers in
`1_Pooling/config.json`. A decoder without a record gets the mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edged.core.errors import ModelError
from edged.models.formats.gguf import open_gguf

_LAST: Final = 3  # of LLAMA_POOLING_TYPE
_RECORD: Final = Path("1_Pooling") / "config.json"


@dataclass(frozen=True)
class Pooling:
    """`kind`: the mean of all hidden states, or the last one. `ended`: a text ends with the token that ends it."""

    kind: Literal["mean", "last"] = "mean"
    ended: bool = False


MEAN: Final = Pooling()


def pooling_of(path: Path) -> Pooling:
    """The record of a GGUF file or a model's folder. One that cannot be read counts as none."""
    try:
        return _of_gguf(path) if path.is_file() else _of_folder(path)
    except (ModelError, OSError, ValueError):
        return MEAN


def _of_gguf(path: Path) -> Pooling:
    file = open_gguf(path)
    kind = file.get(f"{file.get('general.architecture')}.pooling_type")
    return Pooling("last" if kind == _LAST else "mean", file.get("tokenizer.ggml.add_eos_token") is True)


def _of_folder(path: Path) -> Pooling:
    if not (path / _RECORD).is_file():
        return MEAN
    record: Any = json.loads((path / _RECORD).read_text("utf-8"))
    last = isinstance(record, dict) and record.get("pooling_mode_lasttoken") is True
    return Pooling("last", ended=True) if last else MEAN
