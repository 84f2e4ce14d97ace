"""Clients that record what they sent and what came back, with times."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paho.mqtt.client import MQTTMessage

from tests.support import Client, as_json

Body = Callable[[int], dict[str, Any]]


class Requester(Client):
    """One connection that publishes without waiting, as one requester or as many.

    Times are monotonic seconds; `message.timestamp` of paho is the same clock.
    """

    def __init__(self, port: int, root: str) -> None:
        super().__init__(port)
        self.root = root
        self.sent: dict[str, float] = {}

    def listen(self, name: str) -> Requester:
        """Subscribe to the replies to a requester."""
        fleet = self.root.split("/device/")[0]
        self.subscribe(f"{fleet}/reply/{name}/#")
        return self

    def send(self, name: str, payload: bytes | str | dict[str, Any], *, qos: int = 1) -> None:
        """Publish a prompt as this requester; a body with an id is remembered."""
        if isinstance(payload, dict):
            self.sent[payload["id"]] = time.monotonic()
            payload = json.dumps(payload)
        self._client.publish(f"{self.root}/prompt/{name}", payload, qos=qos)

    def answers(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """The first final of each prompt that was sent: seconds after it was sent, and the document."""
        found: dict[str, tuple[float, dict[str, Any]]] = {}
        with self._changed:
            messages = list(self.messages)
        for message in messages:
            document = as_json(message)
            if document.get("final") and document.get("id") in self.sent:
                found.setdefault(document["id"], (message.timestamp - self.sent[document["id"]], document))
        return found

    def settle(self, seconds: float) -> None:
        """Wait until every prompt that was sent has its final, at most so long."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0 and len(self.answers()) < len(self.sent):
                self._changed.wait(min(left, 0.5))

    def seen_within(self, matches: Callable[[MQTTMessage], Any], seconds: float) -> bool:
        """Whether a message, old or new, matches within so long."""
        until = time.monotonic() + seconds
        with self._changed:
            while not any(map(matches, reversed(self.messages))):
                if (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                    return any(map(matches, self.messages))
        return True

    def latencies(self, prefix: str = "") -> list[float]:
        """Seconds from prompt to answer, sorted, of the ids that begin like this; unanswered or refused: infinite."""
        answers = {key: it for key, it in self.answers().items() if it[1]["reason"] in ("stop", "length")}
        return sorted(answers[key][0] if key in answers else math.inf for key in self.sent if key.startswith(prefix))

    def reasons(self, prefix: str = "") -> dict[str, int]:
        """How often each reason came, by name."""
        counts: dict[str, int] = {}
        for key, (_, document) in self.answers().items():
            if key.startswith(prefix):
                counts[document["reason"]] = counts.get(document["reason"], 0) + 1
        return counts


@contextmanager
def steady(requester: Requester, name: str, every: float, body: Body) -> Iterator[None]:
    """Sends a prompt every so many seconds from a thread of its own while the block runs."""
    ended = threading.Event()

    def send() -> None:
        begun = time.monotonic()
        for number in itertools.count():
            if ended.wait(max(0.0, begun + number * every - time.monotonic())):
                return
            requester.send(name, body(number))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def let_pass(seconds: float) -> None:
    """Part of an attack is that time goes by: nothing is waited for."""
    if seconds > 0:
        threading.Event().wait(seconds)


def quantile(values: list[float], part: float) -> float:
    """The smallest value that so large a part of the sorted values does not exceed."""
    return values[max(0, math.ceil(part * len(values)) - 1)] if values else math.nan


def ms(seconds: float) -> str:
    """For people."""
    return "never" if math.isinf(seconds) else "none" if math.isnan(seconds) else f"{seconds * 1000:.0f} ms"
