"""A tokenizer as tables mapped from a packed folder, in place of the tokenizers library's hash maps.

`tokenizer.safetensors` holds the arrays of `ARRAYS`, where merges are of characters and not of bytes also those of
`CHARACTER_ARRAYS`, and, as its metadata, an `About`. `engine/table_splitter.py` reads the tables; the ids are those
that the library gives, of vocabularies with scores those of `scores.py`. Vocabularies of another kind have none.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.formats.packed import read_header

TABLES: Final = "tokenizer.safetensors"
VERSION: Final = 1  # of what is in them: raise it when a tokenizer, its ends or its BOS are read from a file otherwise
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
# Single characters that are tokens, ascending, and their ids. Any other is the symbol NO_TOKEN + its code point until
# it is merged, and written as the bytes of `letters` where it is not.
CHARACTER_ARRAYS: Final[Mapping[str, type]] = {"characters": np.uint32, "symbols": np.int32}
NO_TOKEN: Final = 1 << 30
Array = npt.NDArray[Any]


class About(msgspec.Struct, frozen=True):
    """What a TextCodec and a chat template need besides the tables.

    `whole`: added tokens, each encoded as one wherever a text contains its letters. `normalizer` and `pre_tokenizer`:
    the library's descriptions, None where the tokenizer has none. `unknown`: the id of a byte without a token.
    `before`, `behind`: control tokens that swallow blanks (`Strips`). `version`: VERSION of the writer.
    """

    architecture: str
    template: str | dict[str, str] | None
    control: dict[str, int]
    bos: int | None
    stops: list[int]
    names: dict[str, str]
    whole: dict[str, int]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    unknown: int | None = None
    before: list[int] = []
    behind: list[int] = []
    version: int = 0


class _Version(msgspec.Struct):
    version: int = 0


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


def open_tables(folder: Path) -> TokenTables | None:
    """The tables of a packed folder; None where it has none, or those of another version: then the tokenizer's files
    beside them are read. Raises ModelError `bad_model`."""
    path = folder / TABLES
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        places, metadata = read_header(data)
        if msgspec.json.decode(metadata["about"], type=_Version).version != VERSION:
            return None
        about = msgspec.json.decode(metadata["about"], type=About)
        kinds = {**ARRAYS, **(CHARACTER_ARRAYS if "characters" in places else {})}
        arrays = {name: _view(data, places[name], kind) for name, kind in kinds.items()}
        _check(arrays, about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            "bad_model", f"The tokenizer in {folder} is damaged ({error}); pack the model again."
        ) from error
    return TokenTables(arrays, about)


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
    symbols = arrays.get("symbols", arrays["by_bytes"])
    if len(symbols) != len(arrays.get("characters", symbols)):
        raise ValueError("its tables have different lengths")
    others = [*about.control.values(), *about.whole.values(), *about.stops]
    others += [token for token in (about.bos, about.unknown) if token is not None]
    letters = np.maximum(arrays["letters"], 0)
    for ids in (letters, arrays["merged"], arrays["by_bytes"], symbols, np.array(others, np.int64)):
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(ends)):
            raise ValueError("it names a token outside the vocabulary")
