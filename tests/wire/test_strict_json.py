"""JSON as the contract reads it: what the standard library would let through is refused here."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BadValue
from edged.wire import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet=st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


def refusal(payload: bytes) -> str:
    with pytest.raises(BadValue) as caught:
        strict_json.loads(payload)
    assert not caught.value.path
    return caught.value.sentence


@given(VALUES)
def test_what_is_written_reads_back(value: Any) -> None:
    assert value == strict_json.loads(strict_json.dumps(value))


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_bad_value(payload: bytes) -> None:
    try:
        strict_json.loads(payload)
    except BadValue as error:
        assert error.sentence  # noqa: PT017  - taken or refused: both are right


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a":1,}', "is not valid JSON"),
        (b"{'a':1}", "is not valid JSON"),
        (b'{"a":1} x', "is not valid JSON"),
        (b'{"a":01}', "is not valid JSON"),
        (b'{"a":"\n"}', "is not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "is not valid JSON"),
        (b'{"a":"\xff"}', "is not valid UTF-8 (byte 6)"),
        (b'{"a":"\xed\xa0\x80"}', "is not valid UTF-8 (byte 6)"),
        (b'{"a":"\xc0\xaf"}', "is not valid UTF-8 (byte 6)"),
        (b'{"a":NaN}', "contains NaN, which is not JSON"),
        (b'{"a":Infinity}', "contains Infinity, which is not JSON"),
        (b'{"a":-Infinity}', "contains -Infinity, which is not JSON"),
        (b'{"a":1e999}', "contains the number 1e999, which is too large"),
        (b'{"a":-1e999}', "contains the number -1e999, which is too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "contains a whole number of 5000 digits, which is too large"),
        (b'{"a":1,"a":2}', 'has the key "a" twice'),
        (b'{"x":{"a":1,"b":2,"a":1}}', 'has the key "a" twice'),
        (b'{"a":1,"\\u0061":2}', 'has the key "a" twice'),
        (b'{"a":"\\ud800"}', "contains a lone surrogate escape, which is not text"),
        (b'{"\\udc00":1}', "contains a lone surrogate escape, which is not text"),
        (b'{"a":["\\ud800\\ud800"]}', "contains a lone surrogate escape, which is not text"),
    ],
)
def test_what_the_contract_does_not_take_is_refused_with_its_reason(payload: bytes, says: str) -> None:
    assert refusal(payload).startswith(says)


def test_a_surrogate_pair_is_one_character() -> None:
    assert "😀" == strict_json.loads(b'"\\ud83d\\ude00"')


def test_the_depth_is_bounded_before_anything_is_parsed() -> None:
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth

    assert strict_json.loads(nested(32)) is not None
    assert "is nested deeper than 32 levels" == refusal(nested(33))
    assert "is nested deeper than 32 levels" == refusal(b"[" * 100_000)
    assert "is nested deeper than 32 levels" == refusal(b'{"a":' * 10_000 + b"1" + b"}" * 10_000)


def test_brackets_inside_text_are_not_depth() -> None:
    assert "[" * 100 + '\\"' + "{" * 100 == strict_json.loads(json.dumps("[" * 100 + '\\"' + "{" * 100).encode())


def test_a_number_that_json_does_not_have_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dumps({"a": math.nan})


def test_what_is_written_is_compact_utf8() -> None:
    assert '{"a":["ä",1]}'.encode() == strict_json.dumps({"a": ["ä", 1]})
