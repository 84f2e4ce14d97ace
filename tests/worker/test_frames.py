"""Frames between agent and worker: whole ones come out, anything else is an error."""

from __future__ import annotations

import contextlib
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.prompt import Final, ModelInfo, Request, Sampling, Turn, Usage
from edged.worker import frames

TO_WORKER: list[frames.ToWorker] = [
    frames.Load("m", None, "auto", "auto", 2048, None, "/store"),
    frames.Add("1", Request((Turn("user", "hé"),), None, Sampling(stop=("x",), seed=5), 0)),
    frames.Cancel("1"),
    frames.Ping(),
]
FROM_WORKER: list[frames.FromWorker] = [
    frames.Loading("reading"),
    frames.Loaded(ModelInfo("m", "sha256:0", "llama", "q4_1", "torch", 2048, 4, 100)),
    frames.NotLoaded("missing", "it is not there"),
    frames.Started("1"),
    frames.Generated("1", 0, "Tökyo"),
    frames.Finished("1", Final("stop", "Tökyo", Usage(1, 2, 3), 7, 1.5, 2.5)),
    frames.Refused("1", "too_long", "too_long", "it is too long"),
    frames.Progress(),
]


def decoder() -> frames.Decoder[frames.FromWorker]:
    return frames.Decoder(frames.FromWorker)


def packed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize("frame", TO_WORKER, ids=lambda frame: type(frame).__name__)
def test_every_frame_to_the_worker_comes_out_as_it_went_in(frame: frames.ToWorker) -> None:
    made: frames.Decoder[frames.ToWorker] = frames.Decoder(frames.ToWorker)
    assert made.feed(frames.encode(frame)) == [frame]


@given(st.lists(st.sampled_from(FROM_WORKER), max_size=6), st.integers(1, 40))
def test_frames_come_out_whole_however_the_bytes_are_split(sent: list[frames.FromWorker], size: int) -> None:
    data = b"".join(frames.encode(frame) for frame in sent)
    made = decoder()
    found = [frame for start in range(0, len(data), size) for frame in made.feed(data[start : start + size])]
    assert found == sent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xc1",
        b"garbage",
        msgspec.msgpack.encode({"type": "started"}),
        msgspec.msgpack.encode({"type": "started", "key": 5}),
        msgspec.msgpack.encode({"type": "unknown", "key": "1"}),
        msgspec.msgpack.encode({"key": "1"}),
        msgspec.msgpack.encode({"type": "load", "source": "a frame of the other direction"}),
        msgspec.msgpack.encode(["started", "1"]),
        msgspec.msgpack.encode({"type": "generated", "key": "1", "at": "0", "text": "x"}),
        msgspec.msgpack.encode({"type": "started", "key": "1"}) + b"x",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
    ],
)
def test_what_is_no_frame_of_this_side_is_an_error(body: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        decoder().feed(packed(body))


def test_a_frame_that_claims_to_be_huge_is_an_error_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="a frame of 4294967295 bytes"):
        decoder().feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(ValueError, msgspec.MsgspecError):
        decoder().feed(data)
