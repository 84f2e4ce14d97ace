"""What devices publish, well-formed or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.serve import metrics
from edged.serve.fleet_state import MAX_DEVICES, MAX_DOCUMENT, MAX_EVENTS, FleetState
from edged.serve.watchers import summary

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def state(now: float = 1_800_000_000.0) -> FleetState:
    return FleetState("home", lambda: now)


def give(to: FleetState, kind: str, document: Any, device: str = "pi") -> None:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    to.apply(f"edged/v1/home/device/{device}/{kind}", payload)


def test_a_device_is_known_by_what_it_publishes_and_forgotten_with_its_status() -> None:
    fleet = state()
    give(fleet, "status", b"online")
    give(fleet, "health", {"state": "ok", "model": {"name": "m"}})
    give(fleet, "telemetry", {"speed": {"tokens_per_second": 12.5}, "queue": {"open": 3, "running": 1}})
    device = fleet.devices["pi"]
    assert ("online", "m", 3.0, 12.5) == (
        device.status,
        device.model,
        device.open_prompts,
        device.readings[0].tokens_per_second,
    )
    assert {"pi"} == fleet.changed
    give(fleet, "status", b"")
    assert {} == fleet.devices


@pytest.mark.parametrize("kind", ["status", "health", "telemetry", "event", "config/reported", "config/history"])
@pytest.mark.parametrize(
    "payload",
    [b"{", b"null", b"[1]", b'"x"', b"\xff\xfe", DEEP, b" " * (max(MAX_DOCUMENT.values()) + 1),
     b"<script>alert(1)</script>", b"1e999",
     b'{"state":[],"findings":7,"model":"x","queue":[],"memory":3,"speed":null,"in_force":[1],"decisions":{}}',
     b'{"queue":{"waiting":1e999,"running":"x"},"memory":{"used_bytes":' + b"9" * 400 + b"}}"],
)  # fmt: skip
def test_whatever_is_published_is_passed_over_or_kept_and_shown(kind: str, payload: bytes) -> None:
    fleet = state()
    give(fleet, "status", b"online")
    give(fleet, kind, payload)
    device = fleet.devices["pi"]
    json.dumps(summary(device))
    assert 'edged_device_status{device="pi",status="online"}' in metrics.render(fleet)


@pytest.mark.parametrize(
    "topic",
    ["edged/v1/home/device/PI/status", "edged/v1/home/device//status", "edged/v1/home/device/pi", "edged/v1/other/x",
     "edged/v1/home/device/pi/unknown", "$SYS/x", "edged/v1/home/", "edged/v1/home/group//config"],
)  # fmt: skip
def test_topics_of_others_make_no_device(topic: str) -> None:
    fleet = state()
    fleet.apply(topic, b"online")
    assert [] == [device for device in fleet.devices.values() if device.status != "unknown"]


def test_what_is_kept_is_bounded() -> None:
    fleet = state()
    for number in range(MAX_EVENTS + 50):
        give(fleet, "event", {"code": str(number)})
    assert (MAX_EVENTS, "149") == (len(fleet.devices["pi"].events), fleet.devices["pi"].events[-1]["code"])
    for number in range(MAX_DEVICES + 10):
        give(fleet, "status", b"online", f"d{number}")
    assert MAX_DEVICES == len(fleet.devices)


def test_readings_of_the_last_hour_are_kept() -> None:
    now = [0.0]
    fleet = FleetState("home", lambda: now[0])
    for at in (0.0, 10.0, 3605.0):
        now[0] = at
        give(fleet, "telemetry", {"temperature_c": 50})
    assert [10.0, 3605.0] == [reading.at for reading in fleet.devices["pi"].readings]


def test_labels_are_escaped() -> None:
    fleet = state()
    give(fleet, "health", {"findings": [{"code": 'a"b\\c\nd'}]})
    assert r'code="a\"b\\c\nd"' in metrics.render(fleet)


@pytest.mark.parametrize(
    "payload", [b'{"version":"\\ud800","findings":[{"code":"\\ud800"}]}', b'{"cpu":{"percent":NaN}}']
)
@pytest.mark.parametrize("kind", ["health", "telemetry"])
def test_one_device_cannot_stop_the_page_of_all(kind: str, payload: bytes) -> None:
    fleet = state()
    give(fleet, "status", b"online")
    give(fleet, kind, payload)
    json.dumps(summary(fleet.devices["pi"]), ensure_ascii=False, allow_nan=False).encode()
    metrics.render(fleet).encode()
