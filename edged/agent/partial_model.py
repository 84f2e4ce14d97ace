"""A model that is being received, on disk: the file with holes, and beside it which chunks it has.

    {store}/partial/{key}.push/{name}    the file
    {store}/partial/{key}.ranges         what it has; written after the file was synced, so it never says too much

`edged model pull` removes both when nobody went on with them for a week.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from edged import state_files
from edged.core.chunk_set import ChunkSet, Range
from edged.fleet import checked_file
from edged.wire.hash_tree import proof_size, root_by
from edged.wire.model_push import CHUNK, Offer

KEPT: Final = 3  # partial models that are kept; the oldest go first
SAVE_EVERY: Final = 32  # chunks
_MAX_RANGES_FILE: Final = 32_000_000


class PartialModel:
    """See the module. `folder` is the store's folder of partial downloads. Every method may raise OSError."""

    def __init__(self, folder: Path, digest: str, offer: Offer) -> None:
        key = _key(digest)
        self._folder = folder
        self._offer = offer
        self._identity = {"digest": digest, "size": offer.size, "root": offer.root, "name": offer.name}
        self._place = folder / f"{key}.push"
        self._ranges = folder / f"{key}.ranges"
        self._have = ChunkSet(offer.count)
        self._handle = -1
        self._unsaved = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self._place / self._offer.name

    def open(self) -> list[Range]:
        """Open the file, or begin one; gives the chunks that it has."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_oldest()
        known = self._known()
        if known is None or not self._is_usable():
            self.remove()
            known = []
            self._place.mkdir(mode=0o700)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._handle, self._offer.size)
        self._have.add_ranges(known)
        self._save()
        return self._have.ranges()

    def write(self, number: int, payload: bytes) -> bool:
        """Verify the message of a chunk and write its data; whether it belongs to the file."""
        view, split = memoryview(payload), proof_size(number, self._offer.count)
        data = view[split:]
        if root_by(view[:split], data, number, self._offer.count).hex() != self._offer.root:
            return False
        os.pwrite(self._handle, data, number * CHUNK)
        self._have.add(number)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            self._save()
        return True

    def close(self) -> None:
        """Close the file; what it has is saved."""
        if self._handle >= 0:
            try:
                self._save()
            finally:
                os.close(self._handle)
                self._handle = -1

    def remove(self) -> None:
        """Delete the file and all about it."""
        state_files.clear(self._ranges)
        state_files.clear(self._place)

    def _is_usable(self) -> bool:
        try:
            return state_files.check(self.path)
        except state_files.UnusableError:
            return False

    def _save(self) -> None:
        os.fsync(self._handle)
        checked_file.write(self._ranges, {**self._identity, "ranges": self._have.ranges()})
        self._unsaved = 0

    def _known(self) -> list[Range] | None:
        """What the file has; None where it is of another offer, or that is lost."""
        try:
            body = checked_file.read(self._ranges, _MAX_RANGES_FILE)
            if body is None or {key: body.get(key) for key in self._identity} != self._identity:
                return None
            return [(int(first), int(end)) for first, end in body["ranges"]]
        except (checked_file.DamagedError, KeyError, TypeError, ValueError):
            return None

    def _remove_oldest(self) -> None:
        others = [path for path in self._folder.glob("*.ranges") if path != self._ranges]
        with suppress(OSError):
            others.sort(key=lambda path: path.stat().st_mtime)
        for path in others[: max(0, len(others) - KEPT + 1)]:
            state_files.clear(path.with_suffix(".push"))
            state_files.clear(path)


def bytes_on_disk(folder: Path, digest: str) -> int:
    """Bytes that the partial file of this model takes already, without its holes. Raises OSError."""
    return sum(path.stat().st_blocks * 512 for path in (folder / f"{_key(digest)}.push").glob("*"))


def _key(digest: str) -> str:
    return hashlib.sha256(f"push:{digest}".encode()).hexdigest()[:16]
