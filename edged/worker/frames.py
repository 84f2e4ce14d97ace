"""What agent and worker say to each other: msgpack frames with a length before each, validated on both ends.

A frame is 4 bytes of length (big-endian), then one of the structs below. Nothing is pickled.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from edged.core.prompt import Final, ModelInfo, Request

MAX_FRAME = 64_000_000
_PEEK = socket.MSG_PEEK | socket.MSG_WAITALL
_LENGTH = struct.Struct(">I")


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this model. `bits` is `auto`, `4` or `8`; `threads` None: the physical cores."""

    source: str
    digest: str | None
    bits: str
    backend: str
    context: int
    threads: int | None
    store: str


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Answer this prompt; `key` names it in every frame about it."""

    key: str
    request: Request


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop working on `key`; its `Ended` comes with what was written so far."""

    key: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Are you making progress?"""


ToWorker = Load | Add | Cancel | Ping


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """What the load is doing, for people."""

    doing: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model stands."""

    info: ModelInfo


class NotLoaded(msgspec.Struct, frozen=True, tag="not_loaded"):
    """The model cannot be loaded; `code` is a ModelError's."""

    code: str
    message: str


class Preparing(msgspec.Struct, frozen=True, tag="preparing"):
    """`key` is made ready (template, tokens, format) until `Prepared` or `Refused`: meanwhile it is a suspect."""

    key: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """`key` waits for its turn."""

    key: str


class Began(msgspec.Struct, frozen=True, tag="began"):
    """Work on `key` begins now: if the worker dies from here on, this prompt is a suspect."""

    key: str


class Wrote(msgspec.Struct, frozen=True, tag="wrote"):
    """New text of `key`."""

    key: str
    at: int
    text: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """`key` is done."""

    key: str
    final: Final


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """`key` cannot be run: the final's reason, an error code, a sentence."""

    key: str
    reason: str
    code: str
    message: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The loop went round."""


FromWorker = Loading | Loaded | NotLoaded | Preparing | Prepared | Began | Wrote | Ended | Refused | Progress

_T = TypeVar("_T")


class Decoder(Generic[_T]):
    """Bytes as they come from a socket → whole frames of one side."""

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[_T]:
        """The frames that are complete now. Raises msgspec.ValidationError or ValueError on anything else."""
        self._buffer += data
        frames: list[_T] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._buffer) - start - _LENGTH.size < length:
                break
            body = bytes(self._buffer[start + _LENGTH.size : start + _LENGTH.size + length])
            frames.append(self._decode(body))
            start += _LENGTH.size + length
        del self._buffer[:start]
        return frames


def peek(channel: socket.socket) -> msgspec.Struct | None:
    """Waits for the first frame to the worker and leaves it where it is; None where the agent is gone.

    Raises ValueError or msgspec.MsgspecError for what is none.
    """
    if len(head := channel.recv(_LENGTH.size, _PEEK)) < _LENGTH.size:
        return None
    size = _LENGTH.size + _LENGTH.unpack(head)[0]
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    whole = channel.recv(size, _PEEK)
    return next(iter(Decoder[ToWorker](ToWorker).feed(whole)), None)


def encode(frame: msgspec.Struct) -> bytes:
    """One frame with its length."""
    body = msgspec.msgpack.encode(frame)
    return _LENGTH.pack(len(body)) + body
