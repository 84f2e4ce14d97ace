"""Checks of single values: what they take, what they give, and what they say about the rest."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config import checks
from edged.core.errors import BadValue

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def refusal(check: checks.Check, value: object) -> str:
    """The sentence with which a check refuses a value at the path `key`."""
    with pytest.raises(BadValue) as caught:
        check("key", value)
    assert caught.value.path.startswith("key")
    return str(caught.value)


@pytest.mark.parametrize("value", [1, 5, 10])
def test_an_integer_in_range_is_taken(value: int) -> None:
    assert value == checks.integer(1, 10)("key", value)


@pytest.mark.parametrize("value", [0, 11, -1, 2**53, 10**300, True, False, 1.0, "1", None, [], {}, math.nan, math.inf])
def test_an_integer_refuses_what_is_no_whole_number_in_range(value: object) -> None:
    assert refusal(checks.integer(1, 10), value).startswith("key: must be ")


def test_the_largest_integer_is_the_largest_that_json_readers_keep() -> None:
    assert 2**53 - 1 == checks.integer(0)("key", 2**53 - 1)
    assert "between 0 and 9007199254740991" in refusal(checks.integer(0), 2**53)


@pytest.mark.parametrize("value", [0, 0.5, 5])
def test_a_number_becomes_a_float(value: float) -> None:
    taken = checks.number(0, 5)("key", value)
    assert isinstance(taken, float)
    assert value == taken


@pytest.mark.parametrize("value", [-0.1, 5.1, math.nan, math.inf, -math.inf, True, "1", None, [], 10**400])
def test_a_number_refuses_what_is_not_finite_or_out_of_range(value: object) -> None:
    assert refusal(checks.number(0, 5), value).startswith("key: must be ")


def test_a_truth_value_is_not_a_number() -> None:
    assert checks.boolean("key", True) is True
    assert "key: must be true or false, not 1" == refusal(checks.boolean, 1)


def test_text_has_a_length_a_pattern_and_no_nul() -> None:
    check = checks.text(high=3, pattern=re.compile("[a-c]+"), like="letters a to c")
    assert "abc" == check("key", "abc")
    assert "key: must have 1 to 3 characters, not 0" == refusal(check, "")
    assert "key: must have 1 to 3 characters, not 4" == refusal(check, "abca")
    assert "key: must be letters a to c, not 'xyz'" == refusal(check, "xyz")
    assert "key: must not contain a NUL character" == refusal(checks.text(), "a\0b")


def test_a_number_where_text_is_wanted_is_told_to_stand_in_quotes() -> None:
    assert "key: must be text, not 5; put it in quotes" == refusal(checks.text(), 5)


def test_text_that_only_must_not_be_empty_takes_any_length_and_nul() -> None:
    assert "\0" * 100_000 == checks.not_empty("key", "\0" * 100_000)
    assert "key: must not be empty" == refusal(checks.not_empty, "")
    assert "key: must be text, not 5; put it in quotes" == refusal(checks.not_empty, 5)
    assert "surrogate" in refusal(checks.not_empty, "\ud800")


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
def test_text_with_a_lone_surrogate_is_refused_since_nothing_can_encode_it(value: str) -> None:
    assert "surrogate" in refusal(checks.text(), value)


def test_one_of_takes_a_number_as_its_spelling_and_suggests_the_nearest_word() -> None:
    check = checks.one_of("auto", "native", "torch", "5")
    assert "5" == check("key", 5)
    assert "torch" == check("key", "torch")
    assert "key: must be one of auto, native, torch, 5, not 'nativ' (did you mean \"native\"?)" == refusal(
        check, "nativ"
    )
    assert "did you mean" not in refusal(check, "zzzzzz")
    assert "must be one of" in refusal(checks.one_of("True"), True)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("1.5s", 1.5),
        ("5m", 300),
        ("5min", 300),
        ("24h", 86400),
        ("7d", 604800),
        ("10 s", 10),
    ],
)
def test_a_duration_is_written_as_people_do(written: str, seconds: float) -> None:
    assert pytest.approx(seconds) == checks.duration(0.1, 1e6)("key", written)


@pytest.mark.parametrize(
    "value",
    ["10", "s", "10S", "-1s", "1e3s", "10s ", "0s", "99d", 10, 1.5, None, True, [], "9" * 40 + "s", "١٠s", "10\u2003s"],
)
def test_a_duration_refuses_what_has_no_unit_or_is_out_of_range(value: object) -> None:
    assert refusal(checks.duration(0.1, 86400), value).startswith("key: must be ")


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("100B", 100),
        ("64KB", 64_000),
        ("512MB", 512_000_000),
        ("1.5KB", 1500),
        ("1KiB", 1024),
        ("1MiB", 2**20),
        ("1 GB", 10**9),
    ],
)
def test_a_size_is_written_as_people_do_and_kb_means_1000(written: str, count: int) -> None:
    assert count == checks.size(1, 10**10)("key", written)


@pytest.mark.parametrize("value", ["64", "KB", "64kb", "-1KB", "63B", "17MB", 64, 64.0, None, False, {}, "６４KB"])
def test_a_size_refuses_what_has_no_unit_or_is_out_of_range(value: object) -> None:
    assert refusal(checks.size(64, 16_000_000), value).startswith("key: must be ")


def test_bounds_are_told_as_people_write_them() -> None:
    assert "between 64B and 16MB" in refusal(checks.size(64, 16_000_000), "1B")
    assert "between 100ms and 1d" in refusal(checks.duration(0.1, 86400), "2d")


def test_integer_or_takes_its_word_for_none() -> None:
    check = checks.integer_or("auto", 1, 8)
    assert check("key", "auto") is None
    assert 4 == check("key", 4)
    assert "key: must be auto or a whole number, not '4'" == refusal(check, "4")
    assert refusal(check, True).startswith("key: must be a whole number")


def test_a_list_checks_each_entry_and_names_the_bad_one() -> None:
    check = checks.list_of(checks.integer(0, 9), high=3, distinct=True)
    assert (1, 2) == check("key", [1, 2])
    assert "key[1]: must be between 0 and 9, not 99" == refusal(check, [1, 99])
    assert "key: must not name the same entry twice" == refusal(check, [1, 1])
    assert "key: must have at most 3 entries, not 4" == refusal(check, [1, 2, 3, 4])
    assert "key: must be a list, not 'abc'" == refusal(check, "abc")


def test_p08_a_reserved_key_is_refused_and_never_ignored() -> None:
    check = checks.not_yet("dance", allowed=[])
    assert [] == check("key", [])
    assert "key: this version does not dance yet" == refusal(check, ["waltz"])


@pytest.mark.parametrize("value", [0, 0.0, "false", None, []])
def test_p08_a_reserved_key_takes_no_value_of_another_type(value: object) -> None:
    assert "key: this version does not dance yet" == refusal(checks.not_yet("dance", allowed=False), value)
    assert refusal(checks.not_yet("dance", allowed=False, kind=checks.boolean), value).startswith(
        "key: must be true or false"
    )


def test_a_record_names_the_unknown_key_and_the_nearest_known_one() -> None:
    known = {"max_tokens": checks.integer(1), "temperature": checks.number(0, 5)}
    assert {"max_tokens": 3} == checks.record("", {"max_tokens": 3}, known)
    with pytest.raises(BadValue, match=r'generation\.max_token: unknown key \(did you mean "max_tokens"\?\)'):
        checks.record("generation", {"max_token": 3}, known)
    with pytest.raises(BadValue, match=r"max_tokens: must not be null; leave the key out instead"):
        checks.record("", {"max_tokens": None}, known)
    with pytest.raises(BadValue, match=r"temperature: is required"):
        checks.record("", {"max_tokens": 1}, known, required=("temperature",))
    with pytest.raises(BadValue, match=r"must be a mapping, not \[…\]"):
        checks.record("", [], known)


@pytest.mark.parametrize("key", [1, None, True, 1.5, "a\nb", "x" * 500, "\ud800"])
def test_a_key_that_cannot_be_shown_as_it_is_does_not_break_the_message(key: object) -> None:
    with pytest.raises(BadValue) as caught:
        checks.record("", {key: 1}, {"known": checks.integer(0)})
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_shown_is_short_and_on_one_line() -> None:
    assert "'a\\nb'" == checks.shown("a\nb")
    assert len(checks.shown("x" * 1000)) < 70
    assert "{…}" == checks.shown({"a": 1})
    assert len(checks.shown(10**5000)) < 70


@given(value=ANYTHING)
def test_every_check_gives_a_value_or_a_bad_value_and_nothing_else(value: Any) -> None:
    """No value that JSON or YAML can make raises anything but BadValue."""
    for check in (
        checks.integer(0, 10),
        checks.number(0, 5),
        checks.boolean,
        checks.text(high=10),
        checks.not_empty,
        checks.one_of("auto", "4"),
        checks.duration(0.1, 10),
        checks.size(1, 100),
        checks.integer_or("auto", 0, 10),
        checks.list_of(checks.integer(0), high=2),
        checks.not_yet("do this"),
    ):
        try:
            check("key", value)
        except BadValue as error:
            assert error.path.startswith("key")  # noqa: PT017  - accepted or refused: both are right
            assert str(error).encode()  # noqa: PT017


@given(st.integers(1, 10**7))
def test_a_shown_duration_reads_back_as_the_same(seconds: int) -> None:
    assert seconds == checks.duration(0, 1e9)("key", checks.show_duration(float(seconds)))


@given(st.integers(1, 10**12))
def test_a_shown_size_reads_back_as_the_same(count: int) -> None:
    assert count == checks.size(0, 10**13)("key", checks.show_size(count))
