"""What must have come of each prompt, judged only by what clients sent and saw.

lost      no final although the prompt was sent again, or a second notice of acceptance (the first one was forgotten)
doubled   two finals of one prompt that differ
wrong     a final of another prompt's text
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FREED = {"busy", "invalid", "too_long", "unavailable", "expired"}
"""Reasons after which the same id is a new prompt."""
_ANSWERS = {"stop", "length"}


@dataclass
class _Asked:
    text: str
    notices: int = 0
    freed: int = 0
    finals: set[bytes] = field(default_factory=set)
    wrong: bool = False


@dataclass
class Oracle:
    """Every prompt by its id. Owned by one thread."""

    asked: dict[str, _Asked] = field(default_factory=dict)
    open: dict[str, None] = field(default_factory=dict)

    def sent(self, prompt_id: str, text: str) -> None:
        """A prompt was sent for the first time; the answer is its text."""
        self.asked[prompt_id] = _Asked(text)
        self.open[prompt_id] = None

    def seen(self, document: dict[str, Any], payload: bytes) -> None:
        """A reply arrived."""
        found = self.asked.get(document.get("id", ""))
        if found is None:
            return
        if document.get("accepted"):
            found.notices += 1
        if not document.get("final"):
            return
        if document["reason"] in FREED:
            found.freed += 1
            return
        found.finals.add(payload)
        found.wrong |= document["reason"] in _ANSWERS and document["text"].split() != found.text.split()
        self.open.pop(document["id"], None)

    def expect_again(self, prompt_id: str) -> None:
        """A prompt that was answered is sent once more: its final must come again."""
        self.open[prompt_id] = None

    @property
    def lost(self) -> list[str]:
        return [i for i, it in self.asked.items() if i in self.open or not it.finals or it.notices > 1 + it.freed]

    @property
    def doubled(self) -> list[str]:
        return [i for i, it in self.asked.items() if len(it.finals) > 1]

    @property
    def wrong(self) -> list[str]:
        return [i for i, it in self.asked.items() if it.wrong]
