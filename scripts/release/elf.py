"""Reads from a shared library which other libraries, and which versions of their symbols, it needs.

The format is that of the System V ABI ("Dynamic Section") and of the Linux Standard Base ("Symbol Versioning").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SHT_DYNAMIC, SHT_GNU_VERNEED = 6, 0x6FFFFFFE
DT_NEEDED, DT_RPATH, DT_RUNPATH = 1, 15, 29
MACHINES = {62: "x86_64", 183: "aarch64"}


class NotElf(Exception):
    """The file is no 64-bit little-endian ELF file."""


@dataclass(frozen=True)
class Needs:
    """What the dynamic loader must find."""

    machine: str
    libraries: tuple[str, ...]  # DT_NEEDED, in the file's order
    versions: frozenset[str]  # such as GLIBC_2.34
    search: tuple[str, ...]  # DT_RPATH and DT_RUNPATH

    def newest(self, name: str) -> tuple[int, ...]:
        """The highest version of a set of symbols, as (2, 34) of "GLIBC"; () where none is needed."""
        numbers = (version.rpartition("_") for version in self.versions)
        return max((_numbers(number) for found, _, number in numbers if found == name), default=())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def read(path: Path) -> Needs:
    """The needs of one library. Raises NotElf."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise NotElf(f"{path} is no 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # Of each section header: type, offset, size, the linked section (its strings), further information.
    headers = [struct.unpack_from("<4xI16xQQII", data, table + index * size) for index in range(count)]
    libraries: list[str] = []
    search: list[str] = []
    versions: set[str] = set()
    for kind, offset, length, link, info in headers:
        if kind == SHT_DYNAMIC:
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == DT_NEEDED:
                    libraries.append(_text(data, headers[link][1] + value))
                elif tag in {DT_RPATH, DT_RUNPATH}:
                    search.append(_text(data, headers[link][1] + value))
        elif kind == SHT_GNU_VERNEED:
            versions |= _versions(data, offset, info, headers[link][1])
    return Needs(MACHINES.get(machine, str(machine)), tuple(libraries), frozenset(versions), tuple(search))


def _versions(data: bytes, offset: int, count: int, strings: int) -> set[str]:
    """The names in a section of version needs: `count` records, each with a chain of names."""
    found = set()
    for _ in range(count):
        _, names, _, first, following = struct.unpack_from("<HHIII", data, offset)
        at = offset + first
        for _ in range(names):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, at)
            found.add(_text(data, strings + name))
            at += step
        offset += following
    return found


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
