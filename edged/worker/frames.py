"""The frames between agent and worker: msgpack with a length before each, validated on both ends.

A frame is 4 bytes of length (big-endian), then one of the structs below. Nothing is pickled.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from edged.core.prompt import DEFAULT_PRIORITY, LEVELS_PER_PRIORITY, Final, ModelInfo, Request

MAX_FRAME = 64_000_000
_PEEK = socket.MSG_PEEK | socket.MSG_WAITALL
_LENGTH = struct.Struct(">I")


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this model. `bits` is `auto`, `4` or `8`; `threads` None: the engine's default."""

    source: str
    digest: str | None
    bits: str
    backend: str
    context: int
    threads: int | None
    store: str
    template: str = "auto"


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Answer this prompt; `key` names it in every frame about it.

    `requester` shares what is done one at a time (checks of formats); `level` is how urgent it is: 0 (first) to 40.
    """

    key: str
    request: Request
    requester: str = ""
    level: int = LEVELS_PER_PRIORITY * DEFAULT_PRIORITY


class SetLevel(msgspec.Struct, frozen=True, tag="set_level"):
    """`key` is more or less urgent from now on."""

    key: str
    level: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop computing `key`; its `Finished` carries the text so far."""

    key: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Asks for a `Progress` frame."""


ToWorker = Load | Add | SetLevel | Cancel | Ping


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The present step of the load, for people."""

    doing: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is loaded, and prompts are accepted."""

    info: ModelInfo


class NotLoaded(msgspec.Struct, frozen=True, tag="not_loaded"):
    """The model cannot be loaded; `code` is a ModelError's."""

    code: str
    message: str


class Preparing(msgspec.Struct, frozen=True, tag="preparing"):
    """`key` is being prepared (template, tokens, format) until `Prepared` or `Refused`.

    A worker that ends meanwhile may have been crashed by it.
    """

    key: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """`key` waits to be scheduled."""

    key: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The computation of `key` starts: a worker that ends from here on may have been crashed by it."""

    key: str


class Generated(msgspec.Struct, frozen=True, tag="generated"):
    """New text of `key`, after the first `at` code points, and of the thought before it."""

    key: str
    at: int
    text: str
    reasoning_at: int = 0
    reasoning: str = ""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """`key` has its final."""

    key: str
    final: Final


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """`key` cannot be computed: the final's reason, an error code, a sentence."""

    key: str
    reason: str
    code: str
    message: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The loop makes progress."""


AboutPrompt = Preparing | Prepared | Started | Generated | Finished | Refused
"""The frames with the `key` of a prompt."""
FromWorker = Loading | Loaded | NotLoaded | AboutPrompt | Progress

_T = TypeVar("_T")


class Decoder(Generic[_T]):
    """Bytes as they are received from a socket → whole frames of one direction."""

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
