"""Prompts and cancels: every key, every range, and the id under which a broken body is answered."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config import checks
from edged.core.errors import BadValue
from edged.core.prompt import Turn
from edged.wire import prompts
from edged.wire.prompts import BadPrompt, Prompt

CAP = 2000
TOOL = {"type": "function", "function": {"name": "f"}}


def parse(payload: Any, content_type: str | None = None) -> Prompt:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return prompts.parse_prompt(raw, content_type, CAP, lambda: "made-up")


def refusal(payload: Any, content_type: str | None = None) -> tuple[str, str]:
    """The id to answer under, and the sentence."""
    with pytest.raises(BadPrompt) as caught:
        parse(payload, content_type)
    return caught.value.id, str(caught.value)


# ---- plain text -----------------------------------------------------------------------------------------------------


def test_any_utf8_text_is_a_prompt_with_a_made_up_id() -> None:
    prompt = parse("Wie heißt Japans Hauptstadt?".encode())
    assert Prompt("made-up", named=False, turns=(Turn("user", "Wie heißt Japans Hauptstadt?"),), sampling={}) == prompt
    assert prompt.stream is None


@pytest.mark.parametrize("payload", [b'["a"]', b'"text"', b"5", b"null", b"x{", b"NaN"])
def test_text_that_does_not_begin_with_a_brace_is_no_json(payload: bytes) -> None:
    assert (Turn("user", payload.decode()),) == parse(payload).turns


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "prompt: is empty; send the text of a prompt"),
        (b" \n\t ", "prompt: is empty; send the text of a prompt"),
        (b"caf\xe9", "the payload is not valid UTF-8 (byte 3)"),
        (b"x" * (CAP + 1), "the payload has 2001 bytes, above limits.prompt_bytes (2000); send less"),
    ],
)
def test_text_that_cannot_be_a_prompt_is_answered_under_a_made_up_id(payload: bytes, says: str) -> None:
    assert ("made-up", says) == refusal(payload)


# ---- JSON -----------------------------------------------------------------------------------------------------------


def test_a_body_with_every_key() -> None:
    body = {
        "id": "a1",
        "prompt": "hi",
        "system": "be brief",
        "max_tokens": 5,
        "temperature": 0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 7,
        "stop": ["x"],
        "stream": False,
        "priority": 0,
        "deadline_ms": 1000,
        "expires_at": "2026-11-24T08:00:00.500Z",
    }
    assert Prompt(
        id="a1",
        named=True,
        turns=(Turn("system", "be brief"), Turn("user", "hi")),
        sampling={
            "max_tokens": 5,
            "temperature": 0.0,
            "top_k": 3,
            "top_p": 0.5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "seed": 7,
            "stop": ("x",),
        },
        stream=False,
        priority=0,
        deadline_ms=1000,
        expires_at=datetime(2026, 11, 24, 8, 0, 0, 500_000, timezone.utc).timestamp(),
    ) == parse(body)


def test_messages_are_chat_turns_and_system_goes_first() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]
    assert (Turn("user", "a"), Turn("assistant", ""), Turn("user", "b")) == parse({"messages": turns}).turns
    assert Turn("system", "s") == parse({"messages": turns, "system": "s"}).turns[0]


def test_what_a_body_leaves_out_has_the_contracts_default() -> None:
    prompt = parse({"prompt": "x"})
    assert ("made-up", False, None) == (prompt.id, prompt.named, prompt.priority)
    assert (None, None, None, {}) == (prompt.stream, prompt.deadline_ms, prompt.expires_at, prompt.sampling)


def test_blanks_before_the_brace_and_the_content_type_make_it_json() -> None:
    assert (Turn("user", "x"),) == parse(b' \r\n\t{"prompt":"x"}').turns
    for content_type in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert refusal(b"hello", content_type)[1].startswith("the payload is not valid JSON"), content_type
    assert (Turn("user", "hello"),) == parse(b"hello", "text/plain").turns


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("id", ["a", "x" * 128, "A.b:c"], ["", "x" * 129, "a b", "a/b", "a+b", "a#", "ä", 5, None, True, ["a"]]),
        ("prompt", ["x", " x "], ["", "  \n", 5, None, ["x"], {}, True]),
        ("system", ["be brief", ""], [5, None, []]),
        ("max_tokens", [1, 1024], [0, -1, 1.5, "5", True, None, 2**53, 10**30]),
        ("temperature", [0, 1.5, 5], [-0.1, 5.1, "0", True, None]),
        ("top_k", [0, 50], [-1, 1.5, False]),
        ("top_p", [0, 1, 0.5], [-0.1, 1.1, "1"]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("repetition_penalty", [0.5, 2], [0, 0.49, 2.1, True]),
        ("seed", [0, 2**53 - 1], [-1, 2**53, 1.0, "1"]),
        ("stop", [[], ["a", "b"], ["x"] * 8, ["x" * 1000], ["\0"]], ["x", ["x"] * 9, [""], [1], [None], {}]),
        ("stream", [True, False], [0, 1, "true", None]),
        ("raw", [True, False], [0, 1, "true", None]),
        ("continue", [False], [True, 0, "true", None]),
        ("priority", [0, 9], [-1, 10, 5.0, "5", True]),
        ("deadline_ms", [1, 2**53 - 1], [0, -1, 2**53, 1.5, "1s"]),
        (
            "expires_at",
            ["2026-11-24T08:00:00Z", "2026-11-24T08:00:00.123456789Z"],
            [
                "2026-11-24",
                "2026-11-24T08:00:00",
                "2026-11-24T08:00:00+01:00",
                "2026-13-01T00:00:00Z",
                1.5,
                "",
                "now",
                "2026-02-30T00:00:00Z",
                "0000-01-01T00:00:00Z",
                "2026-11-24 08:00:00Z",
                "2026-11-24T08:00:00.Z",
                "２０２６-11-24T08:00:00Z",
            ],
        ),
        ("format", [{"type": "regex", "pattern": "a"}], [{}, "json", ["a"], None, {"type": "regexp", "pattern": "a"}]),
        ("logprobs", [0, 20], [-1, 21, 10**6, 1.5, True, "5", None]),
        ("tools", [[TOOL]], [[], {}, None, [TOOL, TOOL], [{"function": {"name": "a b"}}]]),
        ("tool_choice", ["auto", "none"], ["any", None, "required", {"function": {"name": "f"}}, {"type": "function"}]),
        ("reasoning", ["auto", "off", "show"], ["on", True, None, ""]),
        ("reasoning_tokens", [1, 1000], [0, -1, True, "5", None, 10**7]),
        ("embed", [], [[], "x", [""], [5], ["x"] * 33, None]),
        ("supersede", ["key", "a b/ä", "x" * 128], ["", "x" * 129, 5, None, ["key"]]),
        ("model", [], ["other", ""]),
        ("privacy", [], ["local", {}]),
    ],
)
def test_p08_every_key_takes_its_range_and_refuses_the_rest_by_name(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        parse({"prompt": "x", key: value})
    for value in bad:
        answered_under, sentence = refusal({"id": "mine", "prompt": "x", key: value})
        assert sentence.startswith(key), (value, sentence)
        assert ("made-up" if key == "id" else "mine") == answered_under


def test_every_key_is_in_the_table_above_or_tested_as_messages() -> None:
    tested = test_p08_every_key_takes_its_range_and_refuses_the_rest_by_name.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert set(prompts._PROMPT_KEYS) == {key for key, _, _ in tested} | {"messages"}


def test_a_raw_prompt_has_a_text_and_no_turns() -> None:
    prompt = parse({"prompt": "Once upon", "raw": True})
    assert ("Once upon", ()) == (prompt.raw, prompt.turns)
    assert parse({"prompt": "x", "raw": False}) == parse({"prompt": "x"})


@pytest.mark.parametrize(
    "beside", [{"prompt": "x", "system": "y"}, {"messages": [{"role": "assistant", "content": "x"}], "continue": True}]
)
def test_a_raw_prompt_takes_nothing_that_needs_a_template(beside: dict[str, Any]) -> None:
    assert "applies no chat template" in refusal({"id": "a", "raw": True, **beside})[1]


def test_a_last_turn_of_the_assistant_is_continued() -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "I am"}]
    assert parse({"messages": turns, "continue": True}).continue_last
    assert not parse({"messages": turns}).continue_last
    assert "needs messages whose last one" in refusal({"messages": turns[:1], "continue": True})[1]


@pytest.mark.parametrize("key", ["model", "privacy"])
def test_p12_what_is_not_built_yet_is_refused_and_says_so(key: str) -> None:
    """A privacy mark is never accepted and ignored."""
    assert "this version does not" in refusal({"id": "a", "prompt": "x", key: "local"})[1]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages: is empty"),
        ([{"role": "user", "content": ""}], "messages: is empty"),
        ([{"role": "user", "content": " "}, {"role": "user", "content": "\n"}], "messages: is empty"),
        ("hi", "messages: must be a list"),
        ([{"role": "user"}], "messages[0].content: is required"),
        ([{"content": "x"}], "messages[0].role: is required"),
        ([{"role": "developer", "content": "x"}], "messages[0].role: must be one of system, user, assistant, tool"),
        ([{"role": "user", "content": 5}], "messages[0].content: must be text"),
        ([{"role": "user", "content": "x", "name": "y"}], "messages[0].name: unknown key"),
        (["x"], "messages[0]: must be a mapping"),
        ([None], "messages[0]: must be a mapping"),
    ],
)
def test_bad_chat_turns_are_named(messages: Any, says: str) -> None:
    assert refusal({"id": "a", "messages": messages})[1].startswith(says)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"id": "a"}, "prompt: give exactly one of prompt and messages; neither is there"),
        (
            {"id": "a", "prompt": "x", "messages": [{"role": "user", "content": "y"}]},
            "prompt: give exactly one of prompt and messages; both are there",
        ),
        ({"id": "a", "prompt": "x", "temprature": 1}, 'temprature: unknown key (did you mean "temperature"?)'),
        (b'{"id":"a","prompt":"x"', "the payload is not valid JSON"),
        (b'{"id":"a","prompt":"\xff"}', "the payload is not valid UTF-8"),
        (b'{"id":"a","id":"a","prompt":"x"}', 'the payload has the key "id" twice'),
        (b'{"id":"a","prompt":"x","seed":NaN}', "the payload contains NaN"),
        (b'{"id":"a","prompt":"x","temperature":1e999}', "the payload contains the number 1e999"),
        (b'{"id":"a","prompt":"\\ud800"}', "the payload contains a lone surrogate"),
        (b'{"id":"a","prompt":' + b"[" * 500 + b"]" * 500 + b"}", "the payload is nested deeper than 32 levels"),
        (b'{"id":"a","prompt":"' + b"x" * CAP + b'"}', "the payload has "),
    ],
)
def test_a_bad_body_is_answered_under_its_own_id_with_a_sentence(payload: Any, says: str) -> None:
    answered_under, sentence = refusal(payload)
    assert "a" == answered_under
    assert sentence.startswith(says)


@pytest.mark.parametrize("payload", [b"[1]", b'"x"', b"5", b"null", b"[{" + b'"id":"a"}]'])
def test_json_that_is_no_object_is_refused(payload: bytes) -> None:
    assert (
        "made-up",
        f"the payload must be one JSON object, not {checks.shown(json.loads(payload))}",
    ) == refusal(payload, "application/json")


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b'{"id":"a"', "a"),
        (b'{ "id" : "a" , x', "a"),
        (b'{"prompt":"say \\"id\\":\\"no\\"","id":"a",', "a"),
        (b'{"x":{"id":"inner"},"id":"outer",', "outer"),
        (b'{"x":[{"id":"inner"}],"id":"outer",', "outer"),
        (b'{"x":"id","id":"a",', "a"),
        (b'{"id":5,"id":"second",', "second"),
        (b'{"id":"first","id":"second"}', "first"),
        (b'{"id":"a/b"', "made-up"),
        (b'{"id":"\\ud800"', "made-up"),
        (b'{"id":"cut', "made-up"),
        (b'{"id":"\xff"', "made-up"),
        (b'{"id":', "made-up"),
        (b'{"\\u0069d":"a"', "made-up"),
        (b"{" + b" " * 4080 + b'"id":"' + b"x" * 50 + b'"', "made-up"),
        (b"{" + b" " * 4080 + b'"id":"a" ', "a"),
        (b"{" * 33 + b'"id":"a"', "made-up"),
        (b'{"id":"\\u0061",', "a"),
    ],
)
def test_the_id_of_a_broken_body_is_its_first_top_level_text_id_in_4_kb(payload: bytes, found: str) -> None:
    assert found == refusal(payload)[0]


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b'{"prompt":"' + b"x" * 5000 + b'","id":"late","zz":1}', "late"),
        (b'{"\\u0069d":"a","prompt":5}', "a"),
        (b'{"prompt":"say","id":"\\u0061","zz":1}', "a"),
        (b'{"x":{"id":"inner"},"id":"outer"}', "outer"),
        (b'{"x":{"id":"inner"}}', "made-up"),
        (b'{"id":"a/b","prompt":"x"}', "made-up"),
        (b'{"id":5,"prompt":"x"}', "made-up"),
    ],
)
def test_a_body_that_could_be_read_is_answered_under_its_id_wherever_it_stands(payload: bytes, found: str) -> None:
    with pytest.raises(BadPrompt) as caught:
        prompts.parse_prompt(payload, None, 10_000, lambda: "made-up")
    assert found == caught.value.id


@given(st.binary(max_size=80).map(lambda tail: b'{"id":"a"' + tail))
def test_no_bytes_raise_anything_but_a_bad_prompt(payload: bytes) -> None:
    try:
        parse(payload)
    except BadPrompt as error:
        assert prompts.PROMPT_ID.match(error.id)  # noqa: PT017  - taken or refused: both are right
        str(error).encode()


@given(
    st.dictionaries(
        st.sampled_from(["id", "prompt", "messages", "stop", "seed", "priority", "expires_at", "stream", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_no_body_raises_anything_but_a_bad_prompt(body: dict[str, Any]) -> None:
    """Either the prompt that was asked, or BadPrompt with a sentence that can be sent."""
    try:
        prompt = parse(body)
    except BadPrompt as error:
        assert str(error).encode()  # noqa: PT017  - accepted or refused: both are right
    else:
        assert body.get("id", "made-up") == prompt.id


# ---- cancels --------------------------------------------------------------------------------------------------------


def test_a_cancel_names_one_prompt_or_all() -> None:
    assert "a" == prompts.parse_cancel(b'{"id":"a"}').id
    assert prompts.parse_cancel(b'{"all":true}').id is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"a",
        b"{}",
        b'{"all":false}',
        b'{"all":1}',
        b'{"id":"a","all":true}',
        b'{"id":"a b"}',
        b'{"id":5}',
        b'{"id":"a","x":1}',
        b"[]",
        b'{"id":null}',
        b'{"id":"a","id":"b"}',
        b'{"id":"\xff"}',
        b"[" * 5000,
    ],
)
def test_a_bad_cancel_is_refused(payload: bytes) -> None:
    with pytest.raises(BadValue):
        prompts.parse_cancel(payload)
