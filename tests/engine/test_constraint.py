"""Constrained output: whatever the model would rather write, the text obeys its format or the prompt fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.core.prompt import Choice, Final, Format, JsonSchema, Regex, Request, Sampling
from edged.engine import constraint as module
from edged.engine.constraint import ConstraintError, FormatCompiler
from edged.engine.engine import Engine, Event
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import FakeBackend, make_engine
from tests.engine.running import check, drain
from tests.engine.schema_check import obeys

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "grün", "東京"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": PERSON,
    "bounded": {"type": "integer", "exclusiveMinimum": -7, "maximum": 1234},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 7},
    "either": {"anyOf": [{"const": "none"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 2,
                                             "maxItems": 4}]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
    "search": {"type": "string", "pattern": "b", "maxLength": 6},
    "control": {"enum": ["a\u0001b", "tab\t", "del\u007f", "line\u2028"]},
    "control pattern": {"type": "string", "pattern": "^a\\x01b$"},
    "map": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False,
            "maxProperties": 2},
    "both": {"allOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "maximum": 9}]},
    "one": {"oneOf": [{"type": "null"}, {"const": 5}]},
    "pair": {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False, "minItems": 2},
    "list": {"$defs": {"l": {"type": ["array", "null"], "items": {"$ref": "#/$defs/l"}, "maxItems": 1}},
             "$ref": "#/$defs/l"},
    "number": {"type": "number", "minimum": 0.5, "maximum": 2.25},
    "length": {"type": "string", "minLength": 2, "maxLength": 2},
}  # fmt: skip
CHOICES = ("a", "ab", "köln", "東京", "東北", "😀 yes", 'say "no"\n\\', "<|im_end|>", "x" * 60, "\u007f\u2028")
PATTERNS = ("(yes|no|maybe not)!?", "[0-9]{4}-[0-9]{2}-[0-9]{2}", "^[äöü東]{2,5}$", "a/b|c\\\\d", "\\p{Han}{2}", "x*y")


def request(wanted: Format, seed: int = 0, **sampling: Any) -> Request:
    chosen = {"temperature": 5.0, "max_tokens": 400, "seed": seed} | sampling
    return Request(raw=f"go {seed}", sampling=Sampling(**chosen), format=wanted)


def schema(value: dict[str, Any]) -> JsonSchema:
    return JsonSchema(json.dumps(value))


def run(engine: Engine, *requests: Request) -> list[Final]:
    for index, one in enumerate(requests):
        engine.add(f"{index}", one)
    events = drain(engine)
    return [check(events[f"{index}"]) for index in range(len(requests))]


# ---- what is written obeys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMAS)
def test_p08_random_text_obeys_its_schema(engine: Engine, name: str) -> None:
    """The fake model never ends by itself: an open-ended number is cut (`length`), and obeys as it is."""
    finals = run(engine, *(request(schema(SCHEMAS[name]), seed) for seed in range(12)))
    assert {"length" if name == "number" else "stop"} == {final.reason for final in finals}
    for final in finals:
        assert obeys(final.text, SCHEMAS[name]), final.text


def test_p08_an_open_object_obeys_or_fails(engine: Engine) -> None:
    """Keys of the model's own invention: none is there twice, none is a known key in another spelling."""
    open_object = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}}
    finals = run(engine, *(request(schema(open_object), seed, max_tokens=60) for seed in range(40)))
    assert any(final.reason == "stop" for final in finals)
    for final in finals:
        if final.reason == "failed":
            assert final.failure is not None
            assert {"format_incomplete", "format"} >= {final.failure.code}
        else:
            assert obeys(final.text, open_object), final.text


def test_p08_random_text_is_one_of_the_choices(engine: Engine) -> None:
    """Also where one begins another, where tokens divide a character, where it looks like a control token."""
    finals = run(engine, *(request(Choice(CHOICES), seed) for seed in range(60)))
    assert {"stop"} == {final.reason for final in finals}
    assert set(CHOICES) >= {final.text for final in finals}
    assert len({final.text for final in finals}) > 4


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_can_be_written(engine: Engine, choice: str) -> None:
    (final,) = run(engine, request(Choice((choice,))))
    assert ("stop", choice) == (final.reason, final.text)


def test_the_longer_choice_can_be_reached_and_the_shorter_one_ended(
    engine: Engine, backend: FakeBackend, codec: TextCodec
) -> None:
    start = len(engine._encoder.encode(request(Choice(("a",)))))
    a, b = codec.encode("a", specials=False)[0], codec.encode("b", specials=False)[0]
    for wishes, text in (([a, b], "ab"), ([a, 2], "a")):
        backend.script = lambda cache, wishes=wishes: wishes[len(cache) - start]
        (final,) = run(engine, request(Choice(("a", "ab"))))
        assert ("stop", text) == (final.reason, final.text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_p08_random_text_matches_its_pattern(engine: Engine, pattern: str) -> None:
    finals = run(engine, *(request(Regex(pattern), seed) for seed in range(12)))
    plain = pattern.replace("\\p{Han}", "[\u2e80-\u9fff\uf900-\ufaff\U00016fe0-\U0003ffff]")
    for final in finals:
        assert {"stop"} >= {final.reason}
        assert re.fullmatch(plain, final.text), final.text


def test_greedy_text_is_the_same_every_time_and_in_company(engine: Engine) -> None:
    one = request(schema(PERSON), 3, temperature=0.0)
    (alone,) = run(engine, one)
    finals = run(engine, one, *(request(Regex("[a-z]{40}"), seed) for seed in range(3)), one)
    assert [alone.text, alone.text] == [finals[0].text, finals[-1].text]


def test_every_way_of_sampling_keeps_to_the_mask(engine: Engine) -> None:
    ways = [{"top_k": 5000}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}, {"repetition_penalty": 2.0},
            {"temperature": 0.0, "repetition_penalty": 2.0}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}]  # fmt: skip
    for way in ways:
        for final in run(engine, *(request(schema(PERSON), seed, **way) for seed in range(3))):
            assert obeys(final.text, PERSON), (way, final.text)


def test_json_has_no_room_for_endless_blanks(engine: Engine, backend: FakeBackend, codec: TextCodec) -> None:
    """A model that would write nothing but spaces comes to an end all the same."""
    (space,) = codec.encode(" ", specials=False)
    backend.script = lambda _: space
    (final,) = run(engine, request(schema({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 3})))
    assert ("stop", "[null, null, null]") == (final.reason, final.text)


def test_a_sequence_that_lost_its_slot_goes_on_where_it_was(engine: Engine, backend: FakeBackend) -> None:
    """More sequences than slots, long enough to be preempted: each text is what it is alone."""
    wanted = [request(Regex(f"{seed}[a-z ]{{120}}"), seed) for seed in range(9)]
    together = run(engine, *wanted)
    assert 4 == backend.most_open
    assert sum(map(sum, backend.log)) > sum(f.usage.prompt_tokens + f.usage.completion_tokens for f in together)
    for one, final in zip(wanted, together, strict=True):
        assert [final.text] == [alone.text for alone in run(engine, one)]
        assert re.fullmatch(f"{one.sampling.seed}[a-z ]{{120}}", final.text)


# ---- what does not obey fails ---------------------------------------------------------------------------------------


def test_p08_a_cut_answer_fails_and_says_what_to_do(engine: Engine) -> None:
    (final,) = run(engine, request(schema(PERSON), max_tokens=5))
    assert ("failed", 5) == (final.reason, final.usage.completion_tokens)
    assert final.text
    assert final.failure is not None
    assert "format_incomplete" == final.failure.code
    assert "raise max_tokens" in final.failure.message


def test_a_cut_answer_that_obeys_as_it_is_ends_as_length(engine: Engine) -> None:
    (final,) = run(engine, request(Regex("[ab]*"), max_tokens=5, temperature=0.0))
    assert final.reason in {"length", "stop"}
    (final,) = run(engine, request(Regex("[a-z]{1,500}"), max_tokens=3))
    assert ("length", None) == (final.reason, final.failure)
    assert re.fullmatch("[a-z]+", final.text)


def test_p08_the_context_ends_an_answer_as_failed_too(backend: FakeBackend, codec: TextCodec, tiny_gguf: Path) -> None:
    engine = make_engine(FakeBackend(codec.vocabulary, context=32), codec, tiny_gguf)
    (final,) = run(engine, request(Regex("[a-z]{400}")))
    assert final.failure is not None
    assert ("failed", "format_incomplete") == (final.reason, final.failure.code)


def test_a_cancelled_one_keeps_its_reason(engine: Engine) -> None:
    engine.add("a", request(Regex("[a-z]{400}")))
    events: list[Event] = [event for _ in range(20) for _, event in engine.step()]
    engine.cancel("a")
    final = check([*events, *(event for _, event in engine.step())])
    assert ("cancelled", None) == (final.reason, final.failure)
    assert final.text


def test_logits_that_are_no_numbers_fail(engine: Engine, backend: FakeBackend) -> None:
    backend.script = lambda _: float("nan")
    (final,) = run(engine, request(Regex("a+b")))
    assert ("failed", "") == (final.reason, final.text)


def test_p08_a_library_that_breaks_fails_the_sequence_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error's mask would allow the end of the text: the error is seen before the mask is used."""
    engine.add("bad", request(Regex("a(.{400}b|.{300}c){400}")))
    compiled = engine._sequences["bad"].guide._answer._compiled  # type: ignore[union-attr]
    compiled.consume_token(codec_token(engine, "z"))  # not allowed: the library's matcher stays broken from here on
    assert compiled.is_error()
    engine.add("good", request(Regex("[a-z]{9}")))
    events = drain(engine)
    bad, good = check(events["bad"]), check(events["good"])
    assert bad.failure is not None
    assert ("failed", "format", "stop") == (bad.reason, bad.failure.code, good.reason)
    assert "llguidance reports" in bad.failure.message


def codec_token(engine: Engine, letter: str) -> int:
    return engine._codec.encode(letter, specials=False)[0]


def test_a_token_that_takes_too_long_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add("slow", request(Regex("[a-z]{9}")))
    monkeypatch.setattr(module, "MASK_SECONDS", 0.0)
    final = check(drain(engine)["slow"])
    assert final.failure is not None
    assert ("failed", "format") == (final.reason, final.failure.code)
    assert "took longer" in final.failure.message


def test_a_token_outside_the_mask_is_not_taken(codec: TextCodec) -> None:
    constraint = FormatCompiler(codec).compile(Choice(("yes",)))
    for token in (codec.encode("n", specials=False)[0], min(codec.stops)):
        with pytest.raises(ConstraintError):
            FormatCompiler(codec).compile(Choice(("yes",))).accept(token)
    assert not constraint.satisfied


def test_the_mask_comes_first_and_covers_padding(codec: TextCodec) -> None:
    """A head wider or narrower than the vocabulary: what has no text is never allowed."""
    constraint = FormatCompiler(codec).compile(Regex("[a-z]+"))
    for size in (codec.vocabulary + 64, codec.vocabulary - 32):
        masked = constraint.mask(np.zeros(size, np.float32))
        allowed = np.flatnonzero(np.isfinite(masked))
        assert all(re.fullmatch(b"[a-z]+", codec.token_bytes(int(token))) for token in allowed)
        assert 26 <= len(allowed) < codec.vocabulary


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a":1, "a":2}', "twice"),
        ('[{"b":{"a":1, "a":2}}]', "twice"),
        ('{"\\u0061":1}', "escape"),
        ('{"a\\u0001" :1}', "escape"),
        ('{"a":"\\u0001: \\"x\\":", "b":[1.5e9, {"a":2}]}', ""),
        ('"\\u0001"', ""),
        ("[" * 5000 + "]" * 5000, "cannot be read"),
        ("9" * 5000, ""),
    ],
)
def test_keys_stand_once_in_one_spelling(text: str, says: str) -> None:
    assert says in module._bad_keys(text)
    assert bool(says) == bool(module._bad_keys(text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"b":true, "b":true}', "format"),  # the library takes a key twice, so minProperties would not hold
        ('{"a\\tb":true, "c":false}', None),
        ('{"b":true', "format_incomplete"),
    ],
)
def test_p08_the_whole_text_is_judged_at_the_end(
    engine: Engine, backend: FakeBackend, codec: TextCodec, text: str, code: str | None
) -> None:
    wanted = request(schema({"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 2}))
    written = [codec.encode(letter, specials=False)[0] for letter in text]
    start = len(engine._encoder.encode(wanted))
    backend.script = lambda cache: [*written, 2][len(cache) - start]
    limited = request(wanted.format, max_tokens=len(written) + (code != "format_incomplete"))  # type: ignore[arg-type]
    (final,) = run(engine, limited)
    assert (text, code) == (final.text, final.failure and final.failure.code)
    assert ("failed" if code else "stop") == final.reason
