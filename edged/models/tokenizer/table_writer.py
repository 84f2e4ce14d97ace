"""Makes the tables of a tokenizer (`tables.py`), of the library's byte-pair models and of vocabularies with scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from safetensors.numpy import save_file

from edged.models.tokenizer.codec import LibrarySplitter, TextCodec
from edged.models.tokenizer.scores import ScoreSplitter
from edged.models.tokenizer.tables import NO_TOKEN, TABLES, VERSION, About, Array
from edged.models.tokenizer.token_bytes import SPACE, byte_level_letters

# Options of a byte-pair model, each with the values that change nothing.
_PLAIN: Final = {
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}
_Made = tuple[dict[str, Array], dict[str, Any]]  # arrays, and what About has of the way to them


def write_tables(folder: Path, codec: TextCodec, template: str | dict[str, str] | None, architecture: str) -> bool:
    """Writes the tables of a tokenizer; False where it is of a kind without tables."""
    if isinstance(codec.splitter, ScoreSplitter):
        made: _Made | None = _scored(codec.splitter, codec)
    elif isinstance(codec.splitter, LibrarySplitter):
        made = _described(json.loads(codec.splitter.tokenizer.to_str()), codec)
    else:
        made = None
    if made is None:
        return False
    arrays, steps = made
    about = About(
        architecture,
        template,
        dict(codec.control),
        codec.bos,
        sorted(codec.stops),
        dict(codec.names),
        **steps,
        before=sorted(codec.strips.before),
        behind=sorted(codec.strips.behind),
        version=VERSION,
    )
    save_file(arrays, folder / TABLES, {"about": msgspec.json.encode(about).decode()})
    return True


def _described(described: dict[str, Any], codec: TextCodec) -> _Made | None:
    """Arrays, and what About has of a tokenizer of the library; None where it has no tables."""
    whole, model = _whole(described["added_tokens"]), described["model"]
    plain = model["type"] == "BPE" and all(model.get(key, values[0]) in values for key, values in _PLAIN.items())
    if whole is None or not plain:
        return None
    of_bytes = "ByteLevel" in json.dumps(described["pre_tokenizer"])
    steps = {"whole": whole, "normalizer": described["normalizer"], "pre_tokenizer": described["pre_tokenizer"]}
    merges = {}
    vocabulary: dict[str, int] = model["vocab"]
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        merges[vocabulary[left] << 32 | vocabulary[right]] = rank, vocabulary[left + right]
    by_bytes = sorted(vocabulary.values(), key=codec.written) if model.get("ignore_merges") else []
    if of_bytes and not model.get("byte_fallback"):
        letters = [vocabulary.get(letter, -1) for letter in byte_level_letters()]  # −1: the library skips such a byte
        if -1 in letters and model["unk_token"] is not None:
            return None
        return _arrays(merges, letters, by_bytes, codec), steps
    letters = [vocabulary.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
    if of_bytes or -1 in letters or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    return _arrays(merges, letters, [], codec) | _characters(vocabulary), steps


def _scored(splitter: ScoreSplitter, codec: TextCodec) -> _Made:
    """The same of a vocabulary with scores: every way to make a token of two symbols, ranked by the token's score."""
    pieces, scores = dict(splitter.pieces), splitter.scores
    order = sorted({scores[token] for token in pieces.values()}, reverse=True)
    ranks = {score: rank for rank, score in enumerate(order)}
    merges: dict[int, tuple[int, int]] = {}
    symbols = {piece[at]: NO_TOKEN + ord(piece[at]) for piece in pieces for at in (0, -1)} | pieces
    for piece, token in pieces.items():
        rank = ranks[scores[token]]
        for at in range(1, len(piece)):
            left = symbols.get(piece[:at])
            if left is not None:
                right = symbols.get(piece[at:])
                if right is not None:
                    merges[left << 32 | right] = rank, token
    marks: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if splitter.prefix:
        marks.insert(0, {"type": "Prepend", "prepend": SPACE})
    steps = {
        "whole": dict(splitter.whole),
        "normalizer": {"type": "Sequence", "normalizers": marks},
        "pre_tokenizer": None,
        "unknown": splitter.unknown,
    }
    return _arrays(merges, splitter.letters, [], codec) | _characters(pieces), steps


def _whole(added: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Added tokens that are not control tokens; None where one is matched by other rules than its letters."""
    ordinary = [token for token in added if not token["special"]]
    if any(token[flag] for token in ordinary for flag in ("normalized", "single_word", "lstrip", "rstrip")):
        return None
    return {token["content"]: token["id"] for token in ordinary}


def _arrays(
    merges: Mapping[int, tuple[int, int]], letters: Sequence[int], by_bytes: Sequence[int], codec: TextCodec
) -> dict[str, Array]:
    """`merges`: pair of symbols → rank and merged id."""
    pairs = np.fromiter(merges, np.uint64, len(merges))
    order = np.argsort(pairs)
    found = np.array(list(merges.values()), np.int64).reshape(-1, 2)[order]
    table = [codec.written(token) for token in range(codec.vocabulary)]
    return {
        "pairs": pairs[order],
        "letters": np.array(letters, np.int32),
        "ranks": found[:, 0].astype(np.uint32),
        "merged": found[:, 1].astype(np.int32),
        "ends": np.cumsum([len(word) for word in table]).astype(np.uint32),
        "by_bytes": np.array(by_bytes, np.int32),
        "bytes": np.frombuffer(b"".join(table), np.uint8),
    }


def _characters(vocabulary: Mapping[str, int]) -> dict[str, Array]:
    single = sorted((ord(text), token) for text, token in vocabulary.items() if len(text) == 1)
    return {
        "characters": np.array([letter for letter, _ in single], np.uint32),
        "symbols": np.array([token for _, token in single], np.int32),
    }
