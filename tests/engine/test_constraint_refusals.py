"""Formats that cannot be enforced: refused in time and by name, stalling nobody."""

from __future__ import annotations

import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Choice, Final, Format, Regex
from edged.engine import format_check
from edged.engine.constraint import Constraint, FormatCompiler
from edged.engine.engine import Engine
from edged.models.tokenizer.codec import TextCodec
from tests.engine.schema_check import obeys
from tests.engine.test_constraint import request, schema
from tests.support import SECONDS

BOMBS: dict[str, Format] = {
    "patterns that must all hold": schema(
        {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(10, 60)]}
    ),
    "multiples": schema({"type": "integer", "allOf": [{"multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}),
    "conditions": schema({"allOf": [{"anyOf": [{"required": [f"p{i}_{j}"]} for j in range(4)]} for i in range(12)]}),
    "itself": schema({"$ref": "#"}),
    "each other": schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    "parentheses": Regex("(" * 1900 + "a" + ")" * 1900),
}
HEAVY: dict[str, Format] = {
    "repeated repetitions": Regex("((a{1,1000}){1,1000}){1,1000}"),
    "a million": Regex("(abc){1000000}"),
    "exponential": Regex("(a|b)*a(a|b){30}"),
    "dots": Regex(".*a.{500}b.{500}c.{500}"),
    "letters": Regex("(\\p{L}{1,300}){1,300}"),
    "many stars": Regex("|".join(f".*{n}.*" for n in range(600))),
    "long text": schema({"type": "string", "minLength": 10**9}),
    "long list": schema({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
    "many keys": schema({"type": "object", "minProperties": 10**8}),
    "deep patterns": schema({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
    "tree": schema({"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}}),
    "doubling": schema({"$defs": {**{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)},
                                  "d25": {"type": "integer"}}, "$ref": "#/$defs/d0"}),
}  # fmt: skip


def test_a_format_is_checked_ahead_in_another_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it `add` needs no process of its own; a format that cannot be used is refused by the check already."""
    wanted, bomb = Regex("[a-c]{3}"), BOMBS["parentheses"]
    assert not engine.is_checked(wanted)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.check_format, wanted).result()
        with pytest.raises(PromptRefused):
            pool.submit(engine.check_format, bomb).result()
    monkeypatch.setattr(format_check, "grammar_error", lambda *_: pytest.fail("checked again"))
    assert (True, True) == (engine.is_checked(wanted), engine.is_checked(bomb))
    assert engine.is_checked(Choice(("yes", "no")))
    engine.add("a", request(wanted))
    with pytest.raises(PromptRefused):
        engine.add("b", request(bomb))


def children_seconds() -> float:
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", BOMBS)
def test_p08_a_format_that_cannot_be_enforced_is_refused_in_time(engine: Engine, name: str) -> None:
    """The check has one second of processor time, at the lowest priority: on a busy machine it takes longer."""
    begun, before = time.monotonic(), children_seconds()
    with pytest.raises(PromptRefused) as caught:
        engine.add("a", request(BOMBS[name]))
    assert children_seconds() - before < format_check.CPU_SECONDS + 1.5
    assert time.monotonic() - begun < 30 * SECONDS
    assert ("invalid", "format") == (caught.value.reason, caught.value.code)
    assert str(caught.value).startswith("The format cannot be used: ")
    assert "\n" not in str(caught.value)
    before = children_seconds()
    with pytest.raises(PromptRefused):
        engine.add("a", request(BOMBS[name]))
    assert before == children_seconds()  # the verdict is remembered
    assert not engine.busy


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_format_stalls_nobody(engine: Engine, name: str) -> None:
    """It is refused, fails, or is obeyed: no step of the engine takes long, and nothing is free text."""
    begun = time.monotonic()
    try:
        engine.add("a", request(HEAVY[name], max_tokens=40))
    except PromptRefused as error:
        refused = error
        assert ("invalid", "format") == (refused.reason, refused.code)
    assert time.monotonic() - begun < 3 * SECONDS
    longest, events = 0.0, []
    while engine.busy:
        begun = time.monotonic()
        events += [event for _, event in engine.step()]
        longest = max(longest, time.monotonic() - begun)
    assert longest < 1.0 * SECONDS
    if events and isinstance(final := events[-1], Final) and final.reason != "failed":
        wanted = HEAVY[name]
        judged = {"type": "integer"} if name == "doubling" else json.loads(getattr(wanted, "text", "true"))
        assert isinstance(wanted, Regex) or obeys(final.text, judged)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (schema({"$ref": "http://127.0.0.1:9/x.json"}), "http://127.0.0.1:9/x.json"),
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "strin"}), "strin"),
        (schema({"type": "string", "format": "shoe-size"}), "shoe-size"),
        (schema({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (schema({"$ref": "#/$defs/missing"}), "missing"),
        (schema({"enum": []}), "empty"),
        (Regex("(?=a)b"), "(?=a)b"),
        (Regex("(a)\\1"), "regex"),
        (Regex("a^b"), "a^b"),
        (Regex("["), "["),
        (Regex("[^\\s\\S]"), ""),
    ],
)
def test_p08_what_the_library_cannot_enforce_is_refused_by_name(engine: Engine, wanted: Format, says: str) -> None:
    with pytest.raises(PromptRefused) as caught:
        engine.add("a", request(wanted))
    assert ("invalid", "format") == (caught.value.reason, caught.value.code)
    assert says in str(caught.value)


def test_a_format_and_stop_texts_are_refused(engine: Engine) -> None:
    with pytest.raises(PromptRefused, match="not both"):
        engine.add("a", request(Choice(("a",)), stop=("a",)))


def test_a_format_that_no_text_obeys_says_so(engine: Engine) -> None:
    with pytest.raises(PromptRefused, match="there is no text that obeys it"):
        engine.add("a", request(BOMBS["itself"]))


def test_a_model_without_the_letters_is_refused(codec: TextCodec) -> None:
    poor = FormatCompiler(codec)
    poor._token_texts = lambda: [b"a" if token == 9 else b"" for token in range(codec.vocabulary + 1)]  # type: ignore[method-assign]
    assert [9] == poor.compile(Choice(("aa",))).allowed(codec.vocabulary).nonzero()[0].tolist()
    with pytest.raises(PromptRefused, match="cannot be used"):
        poor.compile(Choice(("b",)))


def test_a_check_that_cannot_run_is_no_licence(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the child nothing is compiled in its place."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(format_check, "__file__", str(broken))
    with pytest.raises(PromptRefused) as caught:
        engine.add("a", request(Regex("[a-f]{3}")))
    assert "failed" == caught.value.reason
    assert not engine.busy


def test_p07_a_check_without_memory_is_not_begun(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is refused for now: its id is free again, nothing is remembered, and later the format is checked."""
    monkeypatch.setattr("edged.engine.constraint.available_bytes", lambda: format_check.USUAL_BYTES - 1)
    with pytest.raises(PromptRefused, match="too little free memory") as caught:
        engine.add("a", request(Regex("[a-f]{3}")))
    assert ("unavailable", "no_memory") == (caught.value.reason, caught.value.code)
    assert not engine.busy
    monkeypatch.setattr("edged.engine.constraint.available_bytes", lambda: format_check.USUAL_BYTES)
    engine.add("a", request(Regex("[a-f]{3}")))
    assert engine.busy


def test_p07_a_check_that_the_kernel_ends_for_memory_is_a_refusal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed = tmp_path / "killed.py"
    killed.write_text("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setattr(format_check, "__file__", str(killed))
    with pytest.raises(PromptRefused, match="too little free memory") as caught:
        engine.add("a", request(Regex("[a-f]{3}")))
    assert ("unavailable", "no_memory") == (caught.value.reason, caught.value.code)
    assert not engine.busy


def test_the_kernel_finds_the_check_before_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child as it is, but that it reports its own score in place of a verdict."""
    told = tmp_path / "told.py"
    here = Path(format_check.__file__)
    told.write_text(
        f"import sys\nsys.path.insert(0, {str(here.parent)!r})\nimport format_check\n"
        "format_check.trial = lambda grammar: open('/proc/self/oom_score_adj').read()\nformat_check.main()"
    )
    monkeypatch.setattr(format_check, "__file__", str(told))
    assert "1000\n" == format_check.grammar_error("", format_check.USUAL_BYTES)


def test_the_library_is_loaded_only_for_a_format(engine: Engine, codec: TextCodec) -> None:
    compiler = FormatCompiler(codec)
    assert compiler._view is None
    assert isinstance(compiler.compile(Choice(("a",))), Constraint)
    assert compiler._view is not None
