"""The file of `edgectl model push`: its digest, its hash tree, the messages of its chunks."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from edged.core.errors import BadValue, ConfigError
from edged.wire.hash_tree import leaf, proof, tree
from edged.wire.model_push import CHUNK, MAX_SIZE, NAME

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")


class ModelFile:
    """A GGUF file that was read once. Raises ConfigError where it is none, or has changed since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        _check_name(path)
        try:
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
            self._check_begin()
            whole, leaves = hashlib.sha256(), []
            for at in range(0, self.size, CHUNK):
                data = self._read(at)
                whole.update(data)
                leaves.append(leaf(data))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        self.digest = f"sha256:{whole.hexdigest()}"
        self._tree = tree(leaves)

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return len(self._tree[0])

    @property
    def root(self) -> str:
        """The root of the hash tree, 64 hex digits."""
        return self._tree[-1][0].hex()

    def message(self, number: int) -> bytes:
        """The message of a chunk: its proof, then its data."""
        data = self._read(number * CHUNK)
        if leaf(data) != self._tree[0][number]:
            raise ConfigError(f"{self.path}: was changed while it was sent; push it again")
        return proof(self._tree, number) + data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, at: int) -> bytes:
        return os.pread(self._file.fileno(), CHUNK, at)

    def _check_begin(self) -> None:
        if self._read(0)[:4] != b"GGUF":
            raise ConfigError(f"{self.path}: is not a GGUF file; only those can be pushed")
        if self.size > MAX_SIZE:
            raise ConfigError(f"{self.path}: has {self.size:,} bytes, above {MAX_SIZE:,}; copy it to the device")


def _check_name(path: Path) -> None:
    if _PART.search(path.name):
        raise ConfigError(f"{path}: is a part of a model, which the store does not keep; push a model of one file")
    if not NAME.match(path.name):
        what = "must be named with A-Z, a-z, 0-9, ., _ and -, and end in .gguf; rename it"
        raise ConfigError(f"{path}: {what}")


def devices_of(names: list[str]) -> tuple[str, ...]:
    """The devices of `--device`, each once. Raises BadValue."""
    if len(names) > 400:
        raise BadValue("--device", "can be given at most 400 times; use --group, or the whole fleet")
    return tuple(dict.fromkeys(names))
