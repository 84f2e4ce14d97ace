"""How an answer is printed."""

from __future__ import annotations

import io
import random
import sys

import pytest

from edged.ctl.answer import Printer, WordWrap, plain, printer_for, summary


def wrapped(chunks: list[str], width: int) -> str:
    wrap = WordWrap(width)
    return "".join(wrap.add(chunk) for chunk in chunks) + wrap.flush()


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        (["The capital of Jap", "an is Tokyo."], "The capital\nof Japan is\nTokyo."),
        (["a  b\n\n  - c"], "a  b\n\n  - c"),
        (["abcdefghijklm nop"], "abcdefghijklm\nnop"),
        (["abcdefghijklmnopqrst x"], "abcdefghijklmnopqrst x"),
        (["日本の首都は東京です"], "日本の首都は\n東京です"),
        (["don’t break this"], "don’t break\nthis"),
        (["tab\there"], "tab    here"),
    ],
)
def test_no_word_is_broken_at_the_end_of_a_line(chunks: list[str], shown: str) -> None:
    assert shown == wrapped(chunks, 13)


def test_the_wrapping_does_not_depend_on_the_chunks() -> None:
    draw = random.Random(7)
    text = " ".join("x" * draw.randint(1, 9) for _ in range(200))
    whole = wrapped([text], 20)
    assert text == " ".join(whole.split("\n"))
    assert max(map(len, whole.split("\n"))) <= 20
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(text)), 50))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert whole == wrapped(chunks, 20)


def test_a_word_is_written_when_it_is_complete() -> None:
    wrap = WordWrap(20)
    assert "" == wrap.add("Tok")
    assert "Tokyo" == wrap.add("yo ")
    assert "" == wrap.add("i")
    assert " i" == wrap.flush()


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert "a\ufffd[2Jb\ufffd\n" == plain("a\x1b[2Jb\u202e\r\n")


def test_the_summary_bears_whatever_a_device_sends() -> None:
    assert "— stop, 1 token" == summary({"reason": "stop", "usage": {"completion_tokens": 1}, "timing": 5})
    assert "— \ufffd, 0 tokens" == summary({"reason": "\x1b"})


def test_a_pipe_gets_only_the_text_of_the_final(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    printer = printer_for({})
    printer.chunk(0, "half the")
    printer.chunk(0, "another")
    printer.note("pi is offline")
    assert "" == out.getvalue()
    printer.final("another answer")
    assert ("another answer\n", "pi is offline\n") == (out.getvalue(), capsys.readouterr().err)


@pytest.mark.parametrize("width", [None, 40])
def test_an_answer_that_begins_again_is_a_new_line_after_a_note(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = io.StringIO()
    monkeypatch.setattr(sys, "stderr", both)
    printer = Printer(both, width)
    printer.chunk(0, "half the")
    printer.chunk(0, "another")
    printer.final("another answer")
    assert "half the\nedgectl: the device began the answer again\nanother answer\n" == both.getvalue()


@pytest.mark.parametrize(("final", "end"), [("so far", ""), ("so far and on", " and on\n")])
def test_a_note_in_the_middle_of_an_answer_is_a_line_of_its_own(
    final: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = io.StringIO()
    monkeypatch.setattr(sys, "stderr", both)
    printer = Printer(both)
    printer.chunk(0, "so far")
    printer.note("pi is offline")
    printer.final(final)
    assert f"so far\npi is offline\n{end}" == both.getvalue()
