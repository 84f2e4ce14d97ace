"""Publishes what the device reports about itself: status, health, telemetry, events; each on change or when due.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edged import __version__
from edged.agent import logs
from edged.core.health import Finding, changes, health_of
from edged.core.reading import Reading
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import documents
from edged.wire.replies import CONTENT_TYPE
from edged.wire.topics import Topics

HEALTH_EVERY = 300.0
_EVENT_BURST = 20  # bad requests reported one by one; after them one a second, with the count


class Reporter:
    """See the module. `state` returns the parts of the documents when one is published."""

    def __init__(
        self,
        topics: Topics,
        outbound: Outbound,
        state: Callable[[], tuple[documents.LinkState, documents.ModelState, documents.Queue, documents.Speed]],
        boot: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._outbound = outbound
        self._state = state
        self._boot = boot
        self._clock = clock
        self._wall = wall
        self._reading: Reading | None = None
        self._findings: tuple[Finding, ...] = ()
        self._health = health_of(())
        self._health_key: object = None
        self._health_at: float | None = None
        self._status = ""
        self._up = False  # retained topics are published at each connect, so nothing of them waits for one
        self._tokens = float(_EVENT_BURST)
        self._refilled = 0.0
        self._log = logs.logger()
        self.bad_requests = 0

    @property
    def status(self) -> str:
        """The status that was set last."""
        return self._status

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of the last health document."""
        return self._findings

    def set_status(self, status: str) -> None:
        """Publish the status if it has changed."""
        if status != self._status:
            self._status = status
            self.publish_status()

    def publish_status(self) -> None:
        """Publish the status, whatever the topic holds."""
        if not self._up:
            return
        self._outbound.send(
            Publication(topic=self._topics.status, payload=self._status.encode(), retain=True, content_type=None)
        )

    def connected(self) -> None:
        """The connection is ready: publish what is retained."""
        self._up = True
        self.publish_status()
        self._health_key = None
        self.check_health()

    def connection_lost(self) -> None:
        """The connection was lost: retained topics are published at the next one."""
        self._up = False

    def publish_reading(self, reading: Reading, findings: tuple[Finding, ...]) -> None:
        """Publish a reading, and the health where that has changed."""
        self._reading = reading
        self.set_findings(findings)
        _, _, queue, speed = self._state()
        payload = documents.telemetry(self._frame(), reading, speed, queue)
        self._outbound.send_now(self._topics.telemetry, payload, CONTENT_TYPE, None)

    def set_findings(self, findings: tuple[Finding, ...]) -> None:
        """Set the findings that hold now, and publish the health where they change it."""
        self._findings = findings
        self.check_health()

    def check_health(self) -> None:
        """Publish the health document if something changed, or if the last is five minutes old."""
        health = health_of(self._findings)
        link, model, _, _ = self._state()
        key = (health.state, tuple((f.code, f.severity) for f in health.findings), link, model)
        for change in changes(self._health, health):
            self.event(
                f"finding_{change.kind}", f"{change.finding.code}: {change.finding.advice}", finding=change.finding.code
            )
        self._health = health
        due = self._health_at is None or self._clock() - self._health_at >= HEALTH_EVERY
        if not self._up or (key == self._health_key and not due):
            return
        self._health_key, self._health_at = key, self._clock()
        self._outbound.send(Publication(topic=self._topics.health, payload=self.health_document(), retain=True))

    def health_document(self) -> bytes:
        """The health document as it is now."""
        link, model, queue, _ = self._state()
        health = health_of(self._findings)
        return documents.health(self._frame(), health, __version__, link, model, queue, self._topics.groups)

    def event(self, code: str, message: str, **facts: Any) -> None:
        """Publish an event; without a connection it is sent later."""
        payload = documents.event(self._frame(), code, message, facts)
        self._outbound.send(Publication(topic=self._topics.event, payload=payload))

    def bad_request(self, message: str) -> None:
        """Count a message that gets no reply, and publish an event at a bounded rate."""
        self.bad_requests += 1
        now = self._clock()
        self._tokens = min(float(_EVENT_BURST), self._tokens + (now - self._refilled))
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            self._log.info("bad request", reason=message, count=self.bad_requests)
            self.event("bad_request", message, count=self.bad_requests)

    def _frame(self) -> documents.Frame:
        synced = self._reading.clock_synced if self._reading is not None else None
        return documents.Frame(self._wall(), self._boot, synced)
