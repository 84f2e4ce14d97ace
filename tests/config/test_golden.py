"""`golden`: what is accepted, and that no list of them costs more than a moment."""

from __future__ import annotations

import time
from typing import Any

import pytest

from edged.config.golden import MOST, check_golden
from edged.core.errors import BadValue
from edged.core.golden import Contains, Golden, Matches, Obeys
from edged.core.prompt import Turn

USER = (Turn("user", "p"),)


@pytest.mark.parametrize(
    ("entry", "golden"),
    [
        ({"prompt": "p"}, Golden(USER)),
        ({"prompt": "p", "system": "s"}, Golden((Turn("system", "s"), *USER))),
        ({"messages": [{"role": "user", "content": "p"}], "max_tokens": 5}, Golden(USER, 5)),
        ({"prompt": "p", "expect": "a"}, Golden(USER, expect=Contains(("a",)))),
        ({"prompt": "p", "expect": ["a", "b"]}, Golden(USER, expect=Contains(("a", "b")))),
        ({"prompt": "p", "expect": {"regex": "a+"}}, Golden(USER, expect=Matches("a+"))),
        ({"prompt": "p", "expect": {"schema": {"type": "null"}}}, Golden(USER, expect=Obeys('{"type":"null"}'))),
        ({"prompt": "p", "within": "1500ms", "min_tokens_per_second": 2}, Golden(USER, 128, None, 1.5, 2.0)),
    ],
)
def test_an_entry_is_read(entry: dict[str, Any], golden: Golden) -> None:
    assert (golden,) == check_golden("golden", [entry])


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"not-there": DEEP, "items": DEEP}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "golden[0]: needs prompt or messages"),
        ({"prompt": "p", "messages": [{"role": "user", "content": "p"}]}, "golden[0]: needs prompt or messages"),
        ({"messages": []}, "golden[0].messages: must not be empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "golden[0].messages[0].role: must be one of"),
        ({"prompt": "p", "within": "0s"}, "golden[0].within: must be between 100ms and 1h"),
        ({"prompt": "p", "within": "2h"}, "golden[0].within: must be between 100ms and 1h"),
        ({"prompt": "p", "min_tokens_per_second": 0}, "golden[0].min_tokens_per_second: must be between"),
        ({"prompt": "p", "max_tokens": 10**6}, "golden[0].max_tokens: must be between 1 and 4096"),
        ({"prompt": "p" * 20_000}, "golden[0].prompt: must have 1 to 16384 characters"),
        ({"prompt": "p", "expect": []}, "golden[0].expect: is empty"),
        ({"prompt": "p", "expect": ["a"] * 65}, "golden[0].expect: must have at most 64 entries"),
        ({"prompt": "p", "expect": ""}, "golden[0].expect: must have 1 to 4096 characters"),
        ({"prompt": "p", "expect": {}}, "golden[0].expect: must be a text, a list of texts"),
        ({"prompt": "p", "expect": {"regex": "a", "schema": {}}}, "golden[0].expect: must be a text"),
        ({"prompt": "p", "expect": {"regx": "a"}}, 'golden[0].expect.regx: unknown key (did you mean "regex"?)'),
        ({"prompt": "p", "expect": {"regex": "("}}, "golden[0].expect.regex: cannot be read as a regular expression"),
        ({"prompt": "p", "expect": {"regex": "(" * 900 + ")" * 90}}, "golden[0].expect.regex: cannot be read"),
        ({"prompt": "p", "expect": {"regex": "a" * 1001}}, "golden[0].expect.regex: must have 1 to 1000 characters"),
        ({"prompt": "p", "expect": {"regex": "(?i)[\u0100-\uffff]"}}, "golden[0].expect.regex: a pattern with (?i)"),
        ({"prompt": "p", "expect": {"regex": "(?si)[\\u0100-\\uffff]"}}, "golden[0].expect.regex: a pattern with"),
        ({"prompt": "p", "expect": {"schema": {"tipe": "null"}}}, "golden[0].expect.schema: tipe: this keyword cannot"),
        ({"prompt": "p", "expect": {"schema": [1]}}, "golden[0].expect.schema: must be a mapping"),
        ({"prompt": "p", "expect": {"schema": DEEP}}, "golden[0].expect.schema: is nested deeper than 16 levels"),
        ({"prompt": "p", "expect": {"schema": {"enum": ["x" * 20_000]}}}, "golden[0].expect.schema: has 200"),
        ({"prompt": "p", "expect": {"schema": {"items": 5}}}, "golden[0].expect.schema: "),
    ],
)
def test_p04_what_cannot_be_judged_is_refused_with_the_key(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(BadValue) as refused:
        check_golden("golden", [entry])
    assert str(refused.value).startswith(said)


def test_p04_a_list_of_a_thousand_is_refused() -> None:
    with pytest.raises(BadValue, match="must have at most 32 entries, not 1000"):
        check_golden("golden", [{"prompt": "p"}] * 1000)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "((a{1000}){1000}){1000}",
        "(?i)" + "[\x01-\x7e]" * 190,
        "[\u0100-\uffff]" * 190,
        "(a|b|ab)*" * 100,
        "(?:a?){999}" * 90,
        "(?i)" + "(a|B)" * 190,
        "\\w" * 500,
        "|".join(["abc"] * 250),
    ],
)
def test_p04_reading_a_list_of_patterns_takes_no_time(pattern: str) -> None:
    """Matching one of them may take for ever, which is done elsewhere."""
    begun = time.process_time()
    check_golden("golden", [{"prompt": "p", "expect": {"regex": pattern}}] * MOST)
    assert time.process_time() - begun < 2
