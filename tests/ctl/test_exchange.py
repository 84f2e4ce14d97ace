"""What a person who waits for an answer reads about the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from edged.ctl.exchange import Exchange
from edged.link.events import Arrived

STATUS, REPLY = "edged/v1/home/device/pi/status", "edged/v1/home/reply/me/pi/q1"


class Scripted:
    """A session whose messages are given."""

    def __init__(self, *messages: tuple[str, bytes]) -> None:
        self._left = list(messages)

    def messages(self, _timeout: float) -> Iterator[Arrived]:
        topic, payload = self._left.pop(0)
        yield Arrived(0, topic, payload, 0, False, 0)


def document(**members: Any) -> bytes:
    return json.dumps({"id": "q1", **members}).encode()


FINAL = (REPLY, document(final=True, text="", reason="stop"))


@pytest.mark.parametrize(
    ("messages", "then"),
    [
        (((STATUS, b"offline"), FINAL), "the prompt waits for it at the broker"),
        (((REPLY, document(accepted=True)), (STATUS, b"offline"), FINAL), "it answers when it is back"),
    ],
)
def test_a_device_that_goes_offline_has_the_prompt_or_gets_it_later(messages: Any, then: str) -> None:
    notes: list[str] = []
    exchange = Exchange(Scripted(*messages), "home", "me", {"pi": "online"}, {}, "q1", notes.append)  # type: ignore[arg-type]
    assert 1 <= len(list(exchange.replies(20)))
    assert [f"pi is offline; {then} (Ctrl-C ends the wait)"] == notes
