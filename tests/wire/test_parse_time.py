"""No bytes from outside cost time that grows faster than their number."""

from __future__ import annotations

import gc
import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edged.config import checks
from edged.config.keys import check_file
from edged.core.errors import BadValue, EdgedError
from edged.engine import constraint
from edged.link.inbound_properties import without_repeatable
from edged.wire import formats, layers, prompts, strict_json
from edged.wire.topics import PROMPT_ID, Topics
from edged.worker import frames
from tests.support import SECONDS

FLOOR = 0.002  # seconds of processor time; below it the clock's grain says more than the work
_TOPICS = Topics("home", "pi", ("kitchen",))


def cost(parser: Callable[[Any], object], sample: Any) -> float:
    """Seconds of this thread's processor time, the median of three. Not the collector's, which depends on what else is
    in the process."""
    taken = []
    gc.disable()
    try:
        for _ in range(3):
            began = time.thread_time()
            with suppress(EdgedError, ValueError, IndexError, msgspec.MsgspecError):  # most of it cannot be read
                parser(sample)
            taken.append(time.thread_time() - began)
    finally:
        gc.enable()
    return sorted(taken)[1]


def grows(parser: Callable[[Any], object], make: Callable[[int], Any], size: int) -> str:
    """ "" where four times the bytes cost less than eight times the time; else both times."""
    few, many = cost(parser, make(size)), cost(parser, make(4 * size))
    return "" if many < 8 * max(few, FLOOR) else f"{few * 1000:.1f} ms, then {many * 1000:.1f} ms"


def repeated(unit: str, before: str = "", after: str = "") -> Callable[[int], bytes]:
    """Makes about as many bytes as it is asked for."""
    return lambda size: (before + unit * (size // len(unit.encode())) + after).encode()


SHAPES = {
    "escaped quotes": repeated('"\\', "{", "x"),
    "escaped quotes under a key": repeated('\\"', '{"a":"', "x"),
    "backslashes": repeated("\\", '{"a":"', "x"),
    "quotes": repeated('"', "{"),
    "a text without an end": repeated("a", '{"id":"'),
    "an id without a value": repeated('"id" ', "{"),
    "ids without an end": repeated('"id":"\\', "{"),
    "blanks after an id": repeated(" ", '{"id"'),
    "blanks": repeated(" \n", "", "{"),
    "an id of slashes": repeated("/", '{"id":"', '","prompt":"x"}'),
    "an id without slashes": repeated("x", '{"id":"', '","prompt":"x"}'),
    "open braces": repeated("{"),
    "open brackets in texts": repeated('"[",', "["),
    "closing brackets": repeated("]"),
    "empty lists": repeated("[],", "[", "[]]"),
    "nested lists": repeated("[" * 16 + "]" * 16 + ",", "[", "[]]"),
    "one key again and again": repeated('"a":1,', "{", '"a":1}'),
    "digits": repeated("9", '{"seed":', "}"),
    "digits after the point": repeated("3", '{"temperature":0.', "}"),
    "zeros after the point": repeated("0", '{"temperature":0.', "1}"),
    "digits of an exponent": repeated("3", '{"temperature":1e', "}"),
    "escapes": repeated("\\u0041", '{"prompt":"', '"}'),
    "lone surrogates": repeated("\\ud800\\udc00", '{"prompt":"', '\\ud800"}'),
    "wide characters": repeated("\U0001f600", '{"prompt":"', '"}'),
    "a timestamp": repeated("1", '{"prompt":"x","expires_at":"2026-11-24T08:00:00.', 'Z"}'),
    "turns": repeated('{"role":"user","content":"x"},', '{"messages":[', '{"role":"user","content":"x"}]}'),
    "stop texts": repeated('"x",', '{"prompt":"x","stop":[', '"x"]}'),
    "a pattern of backslashes": repeated("\\", '{"prompt":"x","format":{"type":"regex","pattern":"', '"}}'),
    "choices": repeated('"a",', '{"prompt":"x","format":{"type":"choice","choices":[', '"a"]}}'),
    "conditions": repeated(
        '{"pattern":"(a|b)*"},',
        '{"prompt":"x","format":{"type":"json_schema","schema":{"allOf":[',
        '{"pattern":"a"}]}}}',
    ),
    "names with backslashes": repeated(
        "\\\\\\\\x",
        '{"prompt":"x","format":{"type":"json_schema","schema":{"patternProperties":{"',
        '":true}}}}',
    ),
    "a reference": repeated("/$defs", '{"prompt":"x","format":{"type":"json_schema","schema":{"$ref":"#', '"}}}'),
    "a layer of unknown keys": repeated('"generation":{},', '{"revision":1,"settings":{', '"x":1}}'),
    "a duration": repeated("1", '{"revision":1,"settings":{"telemetry":{"interval":"', 's"}}}'),
}
PARSERS: dict[str, Callable[[bytes], object]] = {
    "JSON": strict_json.loads,
    "prompt": lambda payload: prompts.parse_prompt(payload, None, 2**40, lambda: "made-up"),
    "JSON prompt": lambda payload: prompts.parse_prompt(payload, "application/json", 2**40, lambda: "made-up"),
    "too large a prompt": lambda payload: prompts.parse_prompt(payload, None, 1, lambda: "made-up"),
    "id": lambda payload: prompts.id_of(payload, 2**40, lambda: "made-up"),
    "cancel": prompts.parse_cancel,
    "layer": layers.parse_layer,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_payloads_cost_time_in_proportion_to_their_bytes(shape: str) -> None:
    """The small sizes are those of the search for an id, which looks at 4 KB."""
    make = SHAPES[shape]
    slow = {name: grows(parser, make, 1000) or grows(parser, make, 50_000) for name, parser in PARSERS.items()}
    assert {} == {name: why for name, why in slow.items() if why}


@pytest.mark.parametrize("seed", range(12))
def test_random_bodies_cost_time_in_proportion_to_their_bytes(seed: int) -> None:
    """Units of what JSON is made of, drawn by chance and repeated."""
    draw = random.Random(seed)
    parts = ("{", "}", "[", "]", '"', ":", ",", "\\", '"id"', "id", "0", "e", ".", "-", " ", "\n", "\\u", "\x01", "ä")
    unit = "".join(draw.choices(parts, k=draw.randint(1, 12)))
    start = "".join(draw.choices(parts, k=draw.randint(0, 6)))
    make = repeated(unit, start)
    slow = {name: grows(parser, make, 1000) or grows(parser, make, 25_000) for name, parser in PARSERS.items()}
    assert {} == {name: why for name, why in slow.items() if why}, (start, unit)


def test_a_flood_of_broken_bodies_costs_less_than_two_milliseconds_each() -> None:
    """49 ms it was; 3,000 of them kept an agent from everything else for minutes."""
    bomb = b"{" + b'"\\' * 2040 + b"x"
    assert cost(lambda payload: prompts.id_of(payload, 65536, lambda: "made-up"), bomb) < 0.002 * SECONDS


def publish(properties: bytes, payload: bytes = b"{}") -> bytearray:
    """The body of a PUBLISH at QoS 1 to the topic `t`."""
    length = bytearray()
    count = len(properties)
    while count >= 128:
        length.append(count & 127 | 128)
        count >>= 7
    return bytearray(b"\0\x01t\0\x07" + length + bytes([count]) + properties + payload)


PROPERTIES = {
    "empty user properties": lambda size: publish(b"\x26\0\0\0\0" * (size // 5)),
    "user properties": lambda size: publish(b"\x26\0\x01a\0\x01b" * (size // 7)),
    "subscription identifiers": lambda size: publish(b"\x0b\x01" * (size // 2)),
    "content types": lambda size: publish(b"\x03\0\0" * (size // 3)),
    "a long length": lambda size: publish(b"\x0b\xff\xff\xff" * (size // 4)),
    "cut short": lambda size: publish(b"\x26\0\0\0\0" * (size // 5))[: size // 2],
    "none": lambda size: publish(b"", b"x" * size),
}


@pytest.mark.parametrize("shape", PROPERTIES)
def test_properties_cost_time_in_proportion_to_their_bytes(shape: str) -> None:
    assert grows(lambda packet: without_repeatable(0x32, packet), PROPERTIES[shape], 50_000) == ""


TEXTS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "a topic": (_TOPICS.parse, "/", "edged/v1/home/device/pi/prompt/"),
    "a response topic": (lambda topic: _TOPICS.allows_reply_to(topic, "me", ("x/",)), "/", "edged/v1/home/reply/me/"),
    "a URL": (lambda url: check_file({"mqtt": {"url": url}}), "1", "mqtt://a:"),
    "a URL in brackets": (lambda url: check_file({"mqtt": {"url": url}}), ":", "mqtt://["),
    "a reply prefix": (lambda prefix: check_file({"mqtt": {"reply_prefixes": [prefix]}}), "edged/", ""),
    "a size": (lambda text: checks.size(0, 9)("x", text), "1", ""),
    "a size with blanks": (lambda text: checks.size(0, 9)("x", text), " ", "1"),
    "an unknown word": (lambda text: checks.one_of("auto", "native", "torch")("x", text), "at", ""),
    "a reason of the grammar's library": (constraint._first_line, "invalid regex x (in regex) ", ""),
    "a format": (lambda text: formats.check_format("format", {"type": "regex", "pattern": text}), "\\\\x", ""),
}


@pytest.mark.parametrize("what", TEXTS)
def test_texts_cost_time_in_proportion_to_their_length(what: str) -> None:
    parser, unit, before = TEXTS[what]
    assert grows(parser, lambda size: before + unit * (size // len(unit)), 20_000) == ""


def test_frames_in_pieces_cost_time_in_proportion_to_their_bytes() -> None:
    """One large frame, and many small ones, as a socket gives them."""

    def feed(stream: bytes) -> None:
        decoder: frames.Decoder[frames.FromWorker] = frames.Decoder(frames.FromWorker)
        for at in range(0, len(stream), 1000):
            decoder.feed(stream[at : at + 1000])

    assert grows(feed, lambda size: frames.encode(frames.Generated("a", 0, "x" * size)), 500_000) == ""
    assert grows(feed, lambda size: frames.encode(frames.Progress()) * (size // 20), 200_000) == ""


# ---- the same results as the slower ones that they replaced ----------------------------------------------------------


def slow_first_id(payload: bytes) -> str | None:
    """As it was: begins anew at each quote of a text without an end."""
    source = payload[:4096].decode("utf-8", "replace")
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', source, re.DOTALL):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
        elif depth == 1 and token[0] == '"id"':
            value = re.compile(r'\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")').match(source, token.end())
            if value:
                try:
                    found = json.loads(value[1])
                except ValueError:
                    return None
                return found if PROMPT_ID.match(found) else None
    return None


def slow_is_deep(source: str) -> bool:
    """As it was: one character after the other."""
    depth, inside, escaped = 0, False, False
    for character in source:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
            if depth > strict_json.MAX_DEPTH:
                return True
        elif character in "}]":
            depth -= 1
    return False


def is_deep(source: str) -> bool:
    try:
        strict_json._check_depth(source.encode())
    except BadValue:
        return True
    return False


PIECES = st.lists(
    st.sampled_from(["{", "}", "[", "]", '"', ":", ",", "\\", '"id"', '"a"', '"id":"x"', "\\\\", '\\"', " ", "\n", "ä"])
).map("".join)


@settings(max_examples=500, deadline=None)
@given(PIECES)
@example('{"\\"id":"x"')
@example('{"id":"x\\')
@example('{"a{":1,"id":"x')
def test_the_first_id_is_what_it_was(source: str) -> None:
    for body in (source, "{" + source, '{"id":"' + source):
        assert slow_first_id(body.encode()) == prompts._first_id(body.encode())


@settings(max_examples=500, deadline=None)
@given(PIECES, st.integers(0, 40))
@example('"\\\\"' + "[" * 40, 0)
@example('"\\\\\\"' + "[" * 40, 0)
def test_the_depth_is_what_it_was(source: str, times: int) -> None:
    """Up to a backslash outside a text, where all parsers give up."""
    deep = "[" * times + source
    fault = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^"\\])*', re.DOTALL).match(deep)
    assert fault
    if deep[fault.end() :].startswith("\\"):
        deep = deep[: fault.end()]
    assert slow_is_deep(deep) == is_deep(deep)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_the_depth_goes_on_from_block_to_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(strict_json, "_BLOCK", block)
    assert not is_deep("[" * 32 + '"[[["' + "]" * 5 + '"["' + "[" * 5)
    assert is_deep("[" * 32 + '"]]]"' + "]" * 5 + '"]"' + "[" * 6)
