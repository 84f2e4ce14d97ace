"""What the device reports about itself: when it changed, when it is due, and never too often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.agent.reporter import Reporter
from edged.core.health import Finding
from edged.core.reading import Reading
from edged.link.publication import Publication
from edged.wire import documents as d
from edged.wire.topics import Topics

HOT = Finding("too_hot", 10.0, 90.0, 80.0, "cool it")


class Bench:
    """A reporter whose outgoing side records, with a clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent: list[Publication] = []
        self.readings: list[dict[str, Any]] = []
        self.model = d.ModelState("starting", "m", None)
        self.queue = d.Queue(0, 0, 64, 0, 0, 0, 0)
        self.reporter = Reporter(
            Topics("home", "pi"),
            self,  # type: ignore[arg-type]
            lambda: (d.LinkState("5", 1), self.model, self.queue, d.Speed(None, None)),
            "boot",
            lambda: self.now,
            lambda: 50_000.0,
        )

    def send(self, publication: Publication) -> bool:
        self.sent.append(publication)
        return True

    def send_now(self, topic: str, payload: bytes, content_type: str | None, correlation: bytes | None) -> bool:
        assert topic.endswith("/telemetry")
        self.readings.append(json.loads(payload))
        return True

    def on(self, what: str) -> list[Any]:
        """What was published on a topic of ours: words of the status, documents of the others."""
        found = [p for p in self.sent if p.topic == f"edged/v1/home/device/pi/{what}"]
        return [p.payload.decode() if what == "status" else json.loads(p.payload) for p in found]


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.reporter.set_status("starting")
    made.reporter.connected()
    made.sent.clear()
    return made


def test_a_connect_publishes_the_status_first_and_then_the_health() -> None:
    bench = Bench()
    bench.reporter.set_status("starting")
    assert bench.sent == []
    bench.reporter.connected()
    assert [(p.topic.rpartition("/")[2], p.retain) for p in bench.sent] == [("status", True), ("health", True)]
    assert bench.on("status") == ["starting"]
    assert bench.sent[0].content_type is None


def test_the_status_is_published_when_it_is_another(bench: Bench) -> None:
    bench.reporter.set_status("online")
    bench.reporter.set_status("online")
    assert bench.on("status") == ["online"]
    bench.reporter.publish_status()
    assert bench.on("status") == ["online", "online"]


def test_while_the_broker_is_away_nothing_retained_waits_but_events_do(bench: Bench) -> None:
    bench.reporter.connection_lost()
    bench.reporter.set_status("safe")
    bench.reporter.set_findings((HOT,))
    assert bench.on("status") == bench.on("health") == []
    assert [e["code"] for e in bench.on("event")] == ["finding_began"]
    bench.reporter.connected()
    assert bench.on("status") == ["safe"]
    assert bench.on("health")[0]["state"] == "degraded"


def test_health_is_published_on_change_and_at_least_every_five_minutes(bench: Bench) -> None:
    bench.reporter.check_health()
    assert bench.on("health") == []
    bench.model = d.ModelState("online", "m", None)
    bench.reporter.check_health()
    assert len(bench.on("health")) == 1
    bench.queue = d.Queue(5, 1, 64, 9, 0, 0, 0)
    bench.reporter.check_health()
    assert len(bench.on("health")) == 1
    bench.now += 299
    bench.reporter.check_health()
    assert len(bench.on("health")) == 1
    bench.now += 1
    bench.reporter.check_health()
    assert len(bench.on("health")) == 2


def test_a_finding_that_begins_gets_worse_and_ends_is_reported_each_time(bench: Bench) -> None:
    worse = Finding("too_hot", 10.0, 99.0, 80.0, "cool it", "failing")
    for findings in ((HOT,), (HOT,), (worse,), (HOT,), ()):
        bench.reporter.set_findings(findings)
    codes = [(e["code"], e["finding"]) for e in bench.on("event")]
    assert codes == [(f"finding_{word}", "too_hot") for word in ("began", "worse", "better", "ended")]
    assert [h["state"] for h in bench.on("health")] == ["degraded", "failing", "degraded", "ok"]


def test_a_new_value_alone_is_no_change(bench: Bench) -> None:
    bench.reporter.set_findings((HOT,))
    bench.sent.clear()
    bench.reporter.set_findings((Finding("too_hot", 10.0, 91.0, 80.0, "cool it"),))
    assert bench.sent == []


def test_a_reading_is_telemetry_and_shows_whether_the_clock_is_set(bench: Bench) -> None:
    bench.reporter.publish_reading(Reading(at=1.0, uptime_s=2.0, clock_synced=False), ())
    assert bench.readings[0]["clock_synced"] is False
    bench.reporter.event("x", "y")
    assert bench.on("event")[-1]["clock_synced"] is False


def test_a_flood_of_bad_requests_is_counted_and_reported_at_a_bounded_rate(bench: Bench) -> None:
    for _ in range(1000):
        bench.reporter.bad_request("nonsense")
    events = bench.on("event")
    assert [e["count"] for e in events] == list(range(1, 21))
    assert {e["code"] for e in events} == {"bad_request"}
    bench.now += 3
    for _ in range(10):
        bench.reporter.bad_request("nonsense")
    assert [e["count"] for e in bench.on("event")[20:]] == [1001, 1002, 1003]
    assert bench.reporter.bad_requests == 1010
