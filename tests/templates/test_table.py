"""Templates in the shapes in use are rendered as transformers renders them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.templates import table
from tests.templates.conversations import CONVERSATIONS, Conversation, user
from tests.templates.shapes import SHAPES

PAGE = Path(__file__).parents[2] / "docs/reference/chat-templates.md"


def test_every_template_renders_as_with_transformers_and_the_page_has_the_result() -> None:
    assert len(SHAPES) >= 100
    assert len(CONVERSATIONS) >= 10
    lines = table.lines()
    assert [] == [line for line in lines if line.startswith("| `") and not line.endswith("| – |")]
    assert PAGE.read_text("utf-8").splitlines() == lines


def test_the_comparison_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "reference", lambda *_: "another")
    assert tuple(CONVERSATIONS) == table.compare("{{ messages[0].role }}").differ


def test_what_transformers_refuses_is_refused() -> None:
    source = "{{ messages[0].content.append(1) }}"
    asked = Conversation([user([1])])
    assert table.REFUSED == table.reference(source, asked) == table.ours(table.ChatTemplate(source, {}), asked)
