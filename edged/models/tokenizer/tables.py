"""A byte-level tokenizer as tables mapped from a packed folder, in place of the tokenizers library's hash maps.

`tokenizer.safetensors` holds the arrays of `ARRAYS` and, as its metadata, an `About`. `engine/table_splitter.py` reads
the tables; the ids are those that the library gives. Vocabularies of another kind (SentencePiece) have none.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from edged.core.errors import ModelError
from edged.models.formats.packed import read_header
from edged.models.tokenizer.codec import LibrarySplitter, TextCodec
from edged.models.tokenizer.token_bytes import byte_level_letters

TABLES: Final = "tokenizer.safetensors"
# Names and types; their contents: see EdgedMerges in kernels/api.h.
ARRAYS: Final[Mapping[str, type]] = {
    "letters": np.int32,
    "pairs": np.uint64,
    "ranks": np.uint32,
    "merged": np.int32,
    "bytes": np.uint8,
    "ends": np.uint32,
    "by_bytes": np.int32,
}
# Options of a byte-pair model, each with the values that change nothing.
_PLAIN: Final = {
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
}

Array = npt.NDArray[Any]


class About(msgspec.Struct, frozen=True):
    """What a TextCodec and a chat template need besides the tables.

    `whole`: added tokens, each encoded as one wherever a text contains its letters. `normalizer` and `pre_tokenizer`:
    the library's descriptions, None where the tokenizer has none.
    """

    architecture: str
    template: str | None
    control: dict[str, int]
    bos: int | None
    stops: list[int]
    names: dict[str, str]
    whole: dict[str, int]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None


class TokenTables:
    """Open tables: `arrays` by name, views of the mapped file, and `about`."""

    def __init__(self, arrays: Mapping[str, Array], about: About) -> None:
        self.arrays = arrays
        self.about = about


class TokenBytes(Sequence[bytes]):
    """The bytes of each token, read from the tables when asked for."""

    def __init__(self, tables: TokenTables) -> None:
        self._bytes, self._ends = tables.arrays["bytes"], tables.arrays["ends"]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, token: Any) -> Any:
        begin = int(self._ends[token - 1]) if token else 0
        return self._bytes[begin : int(self._ends[token])].tobytes()


def write_tables(folder: Path, codec: TextCodec, template: str | None, architecture: str) -> bool:
    """Writes the tables of a tokenizer of the library; False where it is of a kind without tables."""
    if not isinstance(codec.splitter, LibrarySplitter):
        return False
    described: dict[str, Any] = json.loads(codec.splitter.tokenizer.to_str())
    whole = _whole(described["added_tokens"])
    arrays = _arrays(described, codec) if whole is not None and _is_plain(described) else None
    if whole is None or arrays is None:
        return False
    about = About(
        architecture,
        template,
        dict(codec.control),
        codec.bos,
        sorted(codec.stops),
        dict(codec.names),
        whole,
        described["normalizer"],
        described["pre_tokenizer"],
    )
    save_file(arrays, folder / TABLES, {"about": msgspec.json.encode(about).decode()})
    return True


def open_tables(folder: Path) -> TokenTables | None:
    """The tables of a packed folder; None where it has none. Raises ModelError `bad_model`."""
    path = folder / TABLES
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        places, metadata = read_header(data)
        about = msgspec.json.decode(metadata["about"], type=About)
        arrays = {name: _view(data, places[name], kind) for name, kind in ARRAYS.items()}
        _check(arrays, about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            "bad_model", f"The tokenizer in {folder} is damaged ({error}); pack the model again."
        ) from error
    return TokenTables(arrays, about)


def _is_plain(described: Mapping[str, Any]) -> bool:
    model = described["model"]
    plain = model["type"] == "BPE" and all(model.get(key, values[0]) in values for key, values in _PLAIN.items())
    return plain and "ByteLevel" in json.dumps(described["pre_tokenizer"])


def _whole(added: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Added tokens that are not control tokens; None where one is matched by other rules than its letters."""
    ordinary = [token for token in added if not token["special"]]
    if any(token[flag] for token in ordinary for flag in ("normalized", "single_word", "lstrip", "rstrip")):
        return None
    return {token["content"]: token["id"] for token in ordinary}


def _arrays(described: Mapping[str, Any], codec: TextCodec) -> dict[str, Array] | None:
    vocabulary: dict[str, int] = described["model"]["vocab"]
    letters = [vocabulary.get(letter, -1) for letter in byte_level_letters()]  # −1: the library skips such a byte
    if -1 in letters and described["model"]["unk_token"] is not None:
        return None
    merges: dict[int, tuple[int, int]] = {}
    for rank, merge in enumerate(described["model"]["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        merges[vocabulary[left] << 32 | vocabulary[right]] = rank, vocabulary[left + right]
    pairs = sorted(merges)
    table = [codec.written(token) for token in range(codec.vocabulary)]
    by_bytes: list[int] = []
    if described["model"].get("ignore_merges"):
        by_bytes = sorted(vocabulary.values(), key=table.__getitem__)
    return {
        "pairs": np.array(pairs, np.uint64),
        "letters": np.array(letters, np.int32),
        "ranks": np.array([merges[pair][0] for pair in pairs], np.uint32),
        "merged": np.array([merges[pair][1] for pair in pairs], np.int32),
        "ends": np.cumsum([len(word) for word in table]).astype(np.uint32),
        "by_bytes": np.array(by_bytes, np.int32),
        "bytes": np.frombuffer(b"".join(table), np.uint8),
    }


def _view(data: mmap.mmap, place: tuple[int, int], kind: type) -> Array:
    offset, size = place
    item = np.dtype(kind).itemsize
    if offset % item or size % item:
        raise ValueError("an array is not aligned")
    return np.frombuffer(data, kind, size // item, offset)


def _check(arrays: Mapping[str, Array], about: About) -> None:
    """Raises ValueError unless every index into an array is inside it, and every id inside the vocabulary."""
    ends = arrays["ends"].astype(np.int64)
    if not len(ends) or (np.diff(ends, prepend=0) < 0).any() or ends[-1] > len(arrays["bytes"]):
        raise ValueError("its tokens are outside their bytes")
    if len(arrays["letters"]) != 256 or not len(arrays["pairs"]) == len(arrays["ranks"]) == len(arrays["merged"]):
        raise ValueError("its tables have different lengths")
    others = [*about.control.values(), *about.whole.values(), *about.stops, *([] if about.bos is None else [about.bos])]
    for ids in (np.maximum(arrays["letters"], 0), arrays["merged"], arrays["by_bytes"], np.array(others, np.int64)):
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(ends)):
            raise ValueError("it names a token outside the vocabulary")
