"""Models that think: the thought is never part of the text, can be shown, bounded and switched off."""

from __future__ import annotations

from typing import Any

import pytest

from edged.core.prompt import JsonSchema, Request, Sampling, Turn
from edged.engine.dialect import Dialect, Thinking
from edged.engine.output import Markers, Output
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.template import ChatTemplate
from tests.engine import tool_templates as templates
from tests.engine.running import check, drain
from tests.engine.test_tool_answers import Bench, asked, called, with_controls

TAGS = ("<think>", "</think>")
YES = JsonSchema('{"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}')
EMPTY = "<think>\n\n</think>\n\n"


def thinks(text: str = "Why?", **keys: Any) -> Request:
    sampling = Sampling(temperature=0, max_tokens=keys.pop("max_tokens", 100), stop=keys.pop("stop", ()))
    return Request(turns=(Turn("user", text),), sampling=sampling, **keys)


def prompt(bench: Bench, request: Request) -> str:
    return b"".join(bench.codec.written(token) for token in bench.engine.encode(request)).decode()


# ---- dividing an output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("whole", "thinking", "reasoning", "text"),
    [
        ("<think>\nWell. \n</think>\n\nYes.", False, "Well.", "Yes."),
        ("Well.\n</think>\n\nYes.", True, "Well.", "Yes."),
        ("Yes, <b> < > it is.", False, "", "Yes, <b> < > it is."),
        ("  Yes", False, "", "  Yes"),
        ("So <think>a</think> b <think>c</think>d", False, "ac", "So  b d"),
        ("<think></think>Yes", False, "", "Yes"),
        ("<think>never ends </thin", False, "never ends </thin", ""),
        ("Yes</think> and no", False, "", "Yes and no"),
        ("<think>\n\n</think>\n\n", False, "", ""),
    ],
)
def test_a_thought_is_divided_from_the_text(whole: str, thinking: bool, reasoning: str, text: str, size: int) -> None:
    """However the tokens divide the tags."""
    output = Output((), Markers(TAGS), thinking=thinking, shown=True)
    pieces = []
    for at in range(0, len(whole), size):
        output.push(whole[at : at + size].encode())
        pieces.append(output.chunk())
    output.finish(whole=True)
    pieces.append(output.chunk())
    assert (reasoning, text) == (output.reasoning, output.text)
    assert (reasoning, text) == (
        "".join(piece.reasoning for piece in pieces if piece), "".join(piece.text for piece in pieces if piece)
    )  # fmt: skip


def test_a_stop_text_ends_the_answer_and_not_the_thought() -> None:
    output = Output(("x",), Markers(TAGS))
    output.push(b"<think>x</think>axb")
    assert ("x", "a", True) == (output.reasoning, output.text, output.stopped)


# ---- whole answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (templates.THINKING, Thinking(*TAGS, "enable_thinking")),
        (templates.OPENED, Thinking(*TAGS, None)),
        (templates.WORDS, Thinking("Here is my thought process:", "Here is my response:", "thinking")),
        (templates.HERMES, None),
    ],
)
def test_how_a_model_thinks_is_said_by_its_template(template: str, found: Thinking | None) -> None:
    assert found == Dialect(ChatTemplate(template, {})).thinking


@pytest.mark.parametrize("controls", [(), TAGS], ids=["spelled", "tokens"])
@pytest.mark.parametrize(
    ("template", "written"),
    [(templates.THINKING, "<think>\nHm.\n</think>\n\nYes."), (templates.OPENED, "Hm.\n</think>\n\nYes.")],
)
def test_a_thought_is_shown_only_where_it_is_asked_for(
    codec: TextCodec, template: str, written: str, controls: Any
) -> None:
    bench = Bench(with_controls(codec, controls), template)
    quiet = bench.answer(written, thinks())
    shown = bench.answer(written, thinks(reasoning="show"))
    assert [("stop", "Yes.", None), ("stop", "Yes.", "Hm.")] == [
        (f.reason, f.text, f.reasoning) for f in (quiet, shown)
    ]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (templates.THINKING, "assistant\n" + EMPTY),
        (templates.OPENED, "assistant\n" + EMPTY),
        (templates.WORDS, "assistant\n"),
        (templates.PLAIN, "assistant\n"),
    ],
)
def test_off_is_the_templates_own_switch_or_an_empty_thought(codec: TextCodec, template: str, end: str) -> None:
    bench = Bench(codec, template)
    assert prompt(bench, thinks(reasoning="off")).endswith(end)
    assert "Yes." == bench.answer("Yes.", thinks(reasoning="off")).text


def test_show_switches_on_what_is_off_by_default(codec: TextCodec) -> None:
    bench = Bench(codec, templates.WORDS)
    assert "Begin with" not in prompt(bench, thinks())
    assert "Begin with" in prompt(bench, thinks(reasoning="show"))
    final = bench.answer("Here is my thought process: Hm. Here is my response: Yes.", thinks(reasoning="show"))
    assert ("Hm.", "Yes.") == (final.reasoning, final.text)


@pytest.mark.parametrize("controls", [(), TAGS], ids=["spelled", "tokens"])
def test_a_spent_budget_closes_the_thought_and_the_answer_goes_on(codec: TextCodec, controls: Any) -> None:
    bench = Bench(with_controls(codec, controls), templates.OPENED, drafts=3)
    start = len(bench.engine.encode(thinks()))
    closing = bench.codec.encode("\n</think>\n\n", specials=True)
    x, yes = (bench.codec.encode(text, specials=False) for text in ("x", "Yes."))

    def wish(cache: list[int]) -> int:
        written = cache[start:]
        for at in range(len(written) - len(closing) + 1):
            if written[at : at + len(closing)] == closing:
                return [*yes, 2][len(written) - at - len(closing)]
        return x[0]

    bench.backend.script = wish
    bench.engine.add("a", thinks(reasoning="show", reasoning_tokens=7))
    final = check(drain(bench.engine)["a"])
    assert ("stop", "xxxxxxx", "Yes.") == (final.reason, final.reasoning, final.text)


def test_a_format_holds_from_the_end_of_the_thought(codec: TextCodec) -> None:
    for template, written in ((templates.OPENED, 'Hm.</think>{"yes": true}'), (templates.THINKING, '{"yes": true}')):
        final = Bench(codec, template).answer(written, thinks(format=YES))
        assert ("stop", '{"yes": true}') == (final.reason, final.text)
    final = Bench(codec, templates.THINKING).answer('Hm.</think>{"yes": true}', thinks(format=YES, reasoning="show"))
    assert ("stop", "Hm.", '{"yes": true}') == (final.reason, final.reasoning, final.text)
    final = Bench(codec, templates.OPENED).answer("Hm.", thinks(format=YES, max_tokens=3))
    assert ("failed", "format_incomplete") == (final.reason, final.failure and final.failure.code)


def test_a_tag_in_an_answer_with_a_format_is_text(codec: TextCodec) -> None:
    text = JsonSchema('{"type": "string"}')
    for reasoning in ("auto", "show"):
        written = 'Hm.</think>"<think>"'
        final = Bench(codec, templates.OPENED).answer(written, thinks(format=text, reasoning=reasoning))
        assert ("stop", '"<think>"') == (final.reason, final.text)


def test_calls_come_after_the_thought(codec: TextCodec) -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    template = templates.HERMES.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n{#</think>#}")
    for choice in ("auto", "required"):
        final = Bench(codec, template).answer(
            f"I call {call}.</think>{call}", asked(tool_choice=choice, reasoning="show")
        )
        assert ("stop", "", [("clock", {})]) == (final.reason, final.text, called(final))
        assert final.reasoning == f"I call {call}."


def test_log_probabilities_are_those_of_the_text_alone(codec: TextCodec) -> None:
    bench = Bench(codec, templates.OPENED)
    final = bench.answer("Hm.</think>\n\nYes.", thinks(logprobs=True))
    assert "Yes." == "".join(one.token for one in final.logprobs)
