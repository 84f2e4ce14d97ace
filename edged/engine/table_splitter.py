"""A packed folder's tokenizer without the library's hash maps: the library splits a text into words, the kernels merge
the bytes of each, over tables that are mapped from the file.

The ids are those of the library's own byte-pair model; `tests/engine/test_token_tables.py` compares them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from edged.core.errors import ModelError
from edged.engine.kernels.library import Library, Merges
from edged.models.tokenizer.codec import TextCodec, longest_of
from edged.models.tokenizer.tables import TokenBytes, TokenTables
from edged.models.tokenizer.token_bytes import byte_level_letters

_TO_BYTES = {ord(letter): byte for byte, letter in enumerate(byte_level_letters())}


class TableSplitter:
    """Text to ids over mapped tables."""

    def __init__(self, tables: TokenTables, library: Library) -> None:
        self._tables = tables  # the addresses below are of its arrays
        self._library = library
        arrays, about = tables.arrays, tables.about
        places = {name: arrays[name].ctypes.data for name in arrays}
        self._merges = Merges(
            **places,
            pair_count=len(arrays["pairs"]),
            vocabulary=len(arrays["ends"]),
            whole_count=len(arrays["by_bytes"]),
        )
        self._whole = re.compile(f"({longest_of(about.whole)})")
        description: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": about.normalizer,
            "pre_tokenizer": about.pre_tokenizer,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }
        self._normalizer, self._pre_tokenizer = _steps(description)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which no control token is obeyed."""
        ids: list[int] = []
        for index, piece in enumerate(self._whole.split(text)):
            if index % 2:
                ids.append(self._tables.about.whole[piece])
            elif piece:
                ids += self._merged(piece)
        return ids

    def _merged(self, text: str) -> list[int]:
        plain = self._normalizer.normalize_str(text) if self._normalizer else text
        words = [word for word, _ in self._pre_tokenizer.pre_tokenize_str(plain)]
        try:
            spelled = "".join(words).translate(_TO_BYTES).encode("latin-1")
        except UnicodeEncodeError:
            raise ModelError(
                "bad_model", "The packed tokenizer does not encode text as bytes; pack the model again."
            ) from None
        lengths = np.fromiter(map(len, words), np.int32, len(words))
        ids = np.empty(len(spelled), np.int32)
        count = self._library.bpe_encode(self._merges, spelled, lengths.ctypes.data, len(words), ids.ctypes.data)
        return list(ids[:count].tolist())


def _steps(description: dict[str, Any]) -> tuple[Normalizer | None, PreTokenizer]:
    """How the library prepares and splits a text. It raises a plain Exception for what it cannot read."""
    try:
        pipeline = Tokenizer.from_str(json.dumps(description))
    except Exception as error:
        raise ModelError(
            "bad_model", f"The packed tokenizer cannot be read ({error}); pack the model again."
        ) from error
    if pipeline.pre_tokenizer is None:
        raise ModelError("bad_model", "The packed tokenizer does not say how to split a text; pack the model again.")
    return pipeline.normalizer, pipeline.pre_tokenizer


def codec_from_tables(tables: TokenTables, library: Library) -> TextCodec:
    """The tokenizer of a packed folder. Raises ModelError `bad_model`."""
    about = tables.about
    splitter, table = TableSplitter(tables, library), TokenBytes(tables)
    return TextCodec(splitter, table, about.control, about.bos, frozenset(about.stops), about.names)
