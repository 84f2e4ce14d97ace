"""Writes a received model's chunks on a thread of its own: hashing and syncing must not hold up prompts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from edged.agent.partial_model import PartialModel
from edged.core.chunk_set import Range


class PartOpened(msgspec.Struct, frozen=True):
    """The partial file of writer `number` is open; it has these chunks."""

    number: int
    have: list[Range]


class PartWritten(msgspec.Struct, frozen=True):
    """A chunk was written, or (not `whole`) does not belong to the file."""

    number: int
    chunk: int
    whole: bool


class PartClosed(msgspec.Struct, frozen=True):
    """The file is closed and synced."""

    number: int


class PartFailed(msgspec.Struct, frozen=True):
    """The disk refused; the thread has ended."""

    number: int
    reason: str


PartEvent = PartOpened | PartWritten | PartClosed | PartFailed


class ModelWriter:
    """One file; the thread ends by `close`, or with `PartFailed`. `number` identifies its events."""

    def __init__(self, number: int, part: PartialModel, post: Callable[[PartEvent], None]) -> None:
        self._number = number
        self._part = part
        self._post = post
        self._orders: queue.SimpleQueue[tuple[int, bytes] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model-writer", daemon=True)

    def start(self) -> None:
        """Open the file."""
        self._thread.start()

    def write(self, chunk: int, payload: bytes) -> None:
        """Verify and write a chunk. The caller bounds how many wait."""
        self._orders.put((chunk, payload))

    def close(self, *, remove: bool = False) -> None:
        """Close the file after what was written, or (`remove`) delete it."""
        self._orders.put(remove)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._post(PartOpened(self._number, self._part.open()))
            while not isinstance(order := self._orders.get(), bool):
                chunk, payload = order
                self._post(PartWritten(self._number, chunk, self._part.write(chunk, payload)))
            self._part.close()
            if order:
                self._part.remove()
            self._post(PartClosed(self._number))
        except OSError as error:
            with suppress(OSError):
                self._part.close()
            self._post(PartFailed(self._number, f"the partial file cannot be written ({error.strerror or error})"))
