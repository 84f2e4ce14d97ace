"""A packed folder's tokenizer without the library's hash maps: the library splits a text into words, the kernels merge
the bytes or characters of each, over tables that are mapped from the file.

The ids are those of the library's own byte-pair model, of vocabularies with scores those of `ScoreSplitter`;
`tests/engine/test_token_tables.py` compares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from edged.core.errors import ModelError
from edged.engine.kernels.library import Library, Merges
from edged.models.tokenizer.codec import Strips, TextCodec
from edged.models.tokenizer.matching import LongestOf
from edged.models.tokenizer.tables import ARRAYS, NO_TOKEN, TokenBytes, TokenTables
from edged.models.tokenizer.token_bytes import byte_level_letters

_TO_BYTES = {ord(letter): byte for byte, letter in enumerate(byte_level_letters())}


class TableSplitter:
    """Text to ids over mapped tables."""

    def __init__(self, tables: TokenTables, library: Library) -> None:
        self._tables = tables  # the addresses below are of its arrays
        self._library = library
        arrays, about = tables.arrays, tables.about
        places = {name: arrays[name].ctypes.data for name in ARRAYS}
        self._merges = Merges(
            **places,
            pair_count=len(arrays["pairs"]),
            vocabulary=len(arrays["ends"]),
            whole_count=len(arrays["by_bytes"]),
        )
        self._whole = LongestOf(about.whole)
        self._characters = arrays.get("characters")
        description: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": about.normalizer,
            "pre_tokenizer": about.pre_tokenizer,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }
        self._normalizer, self._pre_tokenizer = _steps(description, self._characters is not None)

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
        words = [word for word, _ in self._pre_tokenizer.pre_tokenize_str(plain)] if self._pre_tokenizer else [plain]
        return self._of_bytes(words) if self._characters is None else self._of_characters(words)

    def _of_bytes(self, words: list[str]) -> list[int]:
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

    def _of_characters(self, words: list[str]) -> list[int]:
        arrays = self._tables.arrays
        letters = np.frombuffer("".join(words).encode("utf-32-le", "replace"), np.uint32)
        known = arrays["characters"]
        symbols = (letters + np.uint32(NO_TOKEN)).astype(np.int32)
        if len(known):
            at = np.minimum(np.searchsorted(known, letters), len(known) - 1)
            symbols = np.where(known[at] == letters, arrays["symbols"][at], symbols).astype(np.int32)
        lengths = np.fromiter(map(len, words), np.int32, len(words))
        ids = np.empty(len(symbols), np.int32)
        count = self._library.bpe_merge(
            self._merges, symbols.ctypes.data, lengths.ctypes.data, len(words), ids.ctypes.data
        )
        found: list[int] = ids[:count].tolist()
        if not (ids[:count] >= NO_TOKEN).any():
            return found
        return [token for symbol in found for token in (self._as_bytes(symbol) if symbol >= NO_TOKEN else (symbol,))]

    def _as_bytes(self, symbol: int) -> Iterator[int]:
        """The tokens of the bytes of a character that is no token itself."""
        unknown = self._tables.about.unknown
        for byte in chr(symbol - NO_TOKEN).encode("utf-8", "replace"):
            token = int(self._tables.arrays["letters"][byte])
            if token >= 0 or unknown is not None:
                yield token if token >= 0 or unknown is None else unknown


def _steps(description: dict[str, Any], of_characters: bool) -> tuple[Normalizer | None, PreTokenizer | None]:
    """How the library prepares and splits a text. It raises a plain Exception for what it cannot read."""
    try:
        pipeline = Tokenizer.from_str(json.dumps(description))
    except Exception as error:
        raise ModelError(
            "bad_model", f"The packed tokenizer cannot be read ({error}); pack the model again."
        ) from error
    if pipeline.pre_tokenizer is None and not of_characters:
        raise ModelError("bad_model", "The packed tokenizer does not say how to split a text; pack the model again.")
    return pipeline.normalizer, pipeline.pre_tokenizer


def codec_from_tables(tables: TokenTables, library: Library) -> TextCodec:
    """The tokenizer of a packed folder. Raises ModelError `bad_model`."""
    about = tables.about
    splitter, table = TableSplitter(tables, library), TokenBytes(tables)
    strips = Strips(frozenset(about.before), frozenset(about.behind))
    return TextCodec(splitter, table, about.control, about.bos, frozenset(about.stops), about.names, strips)
