"""Publishes the device to Home Assistant, and withdraws what an earlier start published and this one does not.

Owned by the agent's main thread. What is at the broker is listed in a file before it is published, so that a start with
other settings knows what to withdraw.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import msgspec

from edged import state_files
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import home_assistant, strict_json
from edged.wire.topics import Topics

_MAX_BYTES = 100_000


class Withdrawn(msgspec.Struct, frozen=True):
    """The token of a message that removes an entity: the broker has it."""

    topic: str


class HomeAssistant:
    """See the module. `prefix` None: switched off. `path`: the list of the topics that are in use."""

    def __init__(self, topics: Topics, prefix: str | None, outbound: Outbound, path: Path) -> None:
        self._messages = {} if prefix is None else home_assistant.discovery(topics, prefix)
        self._outbound = outbound
        self._path = path
        self._stale: set[str] = set()

    def load(self) -> None:
        """Read which topics an earlier start used, and list those of this one."""
        listed = self._listed()
        self._stale = listed - set(self._messages)
        if listed != self._stale | set(self._messages):
            self._store()

    def announce(self) -> None:
        """Publish every entity: at each connect, and when Home Assistant has started."""
        for topic in sorted(self._stale):
            self._outbound.send(Publication(topic, b"", retain=True, content_type=None, token=Withdrawn(topic)))
        for topic, payload in self._messages.items():
            self._outbound.send(Publication(topic, payload, retain=True))

    def withdrawn(self, topic: str) -> None:
        """The broker has removed a topic of an earlier start."""
        self._stale.discard(topic)
        self._store()

    def _listed(self) -> set[str]:
        try:
            document = json.loads(state_files.read(self._path, _MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return set()
        known = document.get("topics") if isinstance(document, dict) else None
        return {topic for topic in known or () if isinstance(topic, str) and topic.endswith("/config")}

    def _store(self) -> None:
        topics = sorted(self._stale | set(self._messages))
        with suppress(OSError):  # without the list nothing is withdrawn later; the device works
            if topics:
                state_files.replace(self._path, strict_json.dumps({"topics": topics}))
            else:
                self._path.unlink(missing_ok=True)
