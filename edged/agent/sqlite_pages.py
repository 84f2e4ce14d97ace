"""Rows of a damaged SQLite file, read from its pages without its trees: whatever page can be parsed is parsed.

Format: https://www.sqlite.org/fileformat2.html. Every leaf page of a table is read as such, wherever it lies; whether a
record is genuine is for the caller to know, by a checksum in it. The file is never written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from edged import state_files

PAGE: Final = 4096
MAX_BYTES: Final = 1 << 30  # of a file; the rest is not read
MAX_LOG: Final = 1 << 27
MAX_ROW: Final = 1 << 26
_LEAF: Final = 0x0D
_HEADER: Final = 32  # bytes before the first frame of a log
_FRAME: Final = 24  # bytes before the page in a frame
_MAGIC: Final = (0x377F0682, 0x377F0683)
_FLOATS: Final = 7
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type → bytes

Value = int | float | str | bytes | None
Record = tuple[int, list[Value]]


class Log(msgspec.Struct, frozen=True):
    """A write-ahead log. Pages by number: `sound` as SQLite reads them, `all` up to the last commit that is there.

    `damaged`: what SQLite would silently leave out.
    """

    sound: Mapping[int, bytes] = {}
    all: Mapping[int, bytes] = {}
    damaged: bool = False


def read_log(path: Path) -> Log:
    """The write-ahead log beside a database; an empty one where there is none."""
    try:
        data = state_files.read(path, MAX_LOG)
    except OSError:
        return Log()
    if len(data) < _HEADER + _FRAME + PAGE:
        return Log()
    magic, _, size, _, *salts, first, second = struct.unpack(">8I", data[:_HEADER])
    order = "<" if magic == _MAGIC[0] else ">"
    sums = _checksum(order, data[: _HEADER - 8], (0, 0))
    known = magic in _MAGIC and size == PAGE and sums == (first, second)
    if not known:  # the log's own header is damaged: what its first frame says counts
        salts = list(struct.unpack(">2I", data[_HEADER + 8 : _HEADER + 16]))
    whole = known
    waiting: dict[int, bytes] = {}
    sound: dict[int, bytes] = {}
    everything: dict[int, bytes] = {}
    damaged = False
    for at in range(_HEADER, len(data) - _FRAME - PAGE + 1, _FRAME + PAGE):
        page, commit, *own, first, second = struct.unpack(">6I", data[at : at + _FRAME])
        content = data[at + _FRAME : at + _FRAME + PAGE]
        if whole:
            sums = _checksum(order, data[at : at + 8] + content, sums)
            whole = own == salts and sums == (first, second)
        if own != salts or not page:
            continue
        waiting[page] = content
        if commit:
            everything.update(waiting)
            if whole:
                sound.update(waiting)
            waiting.clear()
            damaged = damaged or not whole
    return Log(sound, everything, damaged)


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for left, right in struct.iter_unpack(f"{order}II", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


class Pages:
    """Pages by number, from 1: those of `over` in place of the file's. What cannot be read is None."""

    def __init__(self, handle: int | None, over: Mapping[int, bytes]) -> None:
        self._handle = handle
        self._over = over
        size = min(os.fstat(handle).st_size, MAX_BYTES) if handle is not None else 0
        self.count = min(max(-(-size // PAGE), *over, 0), MAX_BYTES // PAGE)

    def __getitem__(self, number: int) -> bytes | None:
        if (page := self._over.get(number)) is not None:
            return page
        if self._handle is None or not 1 <= number <= self.count:
            return None
        with suppress(OSError):  # a sector that the disk cannot read
            page = os.pread(self._handle, PAGE, (number - 1) * PAGE)
            return page if len(page) == PAGE else page.ljust(PAGE, b"\0") if page else None
        return None


def records(path: Path, over: Mapping[int, bytes]) -> Iterator[Record]:
    """Every record of every table that can be parsed, as (row id, values); `over` are newer pages of a log."""
    handle = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            pages = Pages(handle, over)
        except OSError:
            return
        for number in range(1, pages.count + 1):
            page = pages[number]
            if page is not None:
                yield from _leaf(pages, page, 100 if number == 1 else 0)
    finally:
        if handle is not None:
            os.close(handle)


def _leaf(pages: Pages, page: bytes, at: int) -> Iterator[Record]:
    if page[at] != _LEAF:
        return
    cells = min(int.from_bytes(page[at + 3 : at + 5], "big"), (PAGE - at - 8) // 2)
    for index in range(cells):
        place = int.from_bytes(page[at + 8 + 2 * index : at + 10 + 2 * index], "big")
        with suppress(ValueError, IndexError, struct.error, UnicodeDecodeError):
            yield _cell(pages, page, place)


def _cell(pages: Pages, page: bytes, at: int) -> Record:
    length, at = _varint(page, at)
    row, at = _varint(page, at)
    if length > MAX_ROW:
        raise ValueError("longer than any row")
    most, least = PAGE - 35, (PAGE - 12) * 32 // 255 - 23
    if length <= most:
        return _signed(row), _values(page[at : at + length], length)
    local = least + (length - least) % (PAGE - 4)
    local = local if local <= most else least
    pieces, have = [page[at : at + local]], local
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    seen: set[int] = set()
    while have < length:
        more = pages[following]
        if more is None or following in seen:
            raise ValueError("a page is missing")
        seen.add(following)
        following = int.from_bytes(more[:4], "big")
        pieces.append(more[4 : 4 + length - have])
        have += len(pieces[-1])
    return _signed(row), _values(b"".join(pieces), length)


def _values(payload: bytes, length: int) -> list[Value]:
    if len(payload) != length:
        raise ValueError("cut short")
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    return values


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in _INTEGERS:
        size = _INTEGERS[kind]
        return int.from_bytes(payload[at : at + size], "big", signed=True), at + size
    if kind == _FLOATS:
        return float(struct.unpack(">d", payload[at : at + 8])[0]), at + 8
    if kind in {8, 9}:
        return kind - 8, at
    if kind < 12:
        raise ValueError("a reserved type")
    size = (kind - 12) // 2
    raw = payload[at : at + size]
    if len(raw) != size:
        raise ValueError("cut short")
    return (raw.decode() if kind % 2 else raw), at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
