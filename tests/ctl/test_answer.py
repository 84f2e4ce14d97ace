"""How an answer is printed."""

from __future__ import annotations

import random

import pytest

from edged.ctl.answer import WordWrap, plain, summary


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
