"""The revision that a push gets."""

from __future__ import annotations

from typing import Any

import pytest

from edged.serve.fleet_state import FleetState
from edged.serve.layer_pushes import Layer, _next_revision
from edged.wire.next_revision import next_revision


@pytest.mark.parametrize(
    ("current", "following"),
    [
        (b"", 1),
        (b'{"revision":5,"settings":{}}', 6),
        (b'{"revision":5,"settings":{"no_such_key":1},"more":1}', 6),
        (b'{"revision":5', 1),
        (b"[5]", 1),
        (b'{"revision":true,"settings":{}}', 1),
        (b'{"revision":-5,"settings":{}}', 1),
        (b'{"revision":1e400,"settings":{}}', 1),
    ],
)
def test_it_is_after_the_one_at_the_broker_even_if_its_settings_cannot_be_used(current: bytes, following: int) -> None:
    assert following == next_revision("device", current, (), ())


def decision(revision: int | None, phase: str, layer: str = "device") -> dict[str, Any]:
    return {"layer": layer, "revision": revision, "phase": phase}


@pytest.mark.parametrize(
    ("report", "history", "following"),
    [
        ({"in_force": {"device": 4, "fleet": 9}}, [], 5),
        ({"in_force": {"device": 4}, **decision(6, "rolled_back")}, [], 7),
        ({"in_force": {}, **decision(6, "rejected", "fleet")}, [], 1),
        ({"in_force": [4]}, [decision(8, "applied", "fleet"), decision(3, "rejected"), decision(2, "applied")], 4),
        ({}, [decision(None, "rejected"), decision(3, "rejected")], 4),
        ({}, [decision(1, "applied"), decision(None, "applied"), decision(9, "applied")], 2),
        ({**decision("x", "rejected")}, [{}], 1),  # type: ignore[arg-type]
    ],
)
def test_it_is_after_those_that_a_device_applied_or_refused_since_the_layer_was_removed(
    report: dict[str, Any], history: list[dict[str, Any]], following: int
) -> None:
    assert following == next_revision("device", b"junk", [report], [history])


def test_the_console_counts_only_the_devices_that_have_the_layer() -> None:
    state = FleetState("home", lambda: 0.0)
    state.apply("edged/v1/home/device/pi/config/reported", b'{"in_force":{"device":4,"fleet":6}}')
    state.apply("edged/v1/home/device/other/config/reported", b'{"in_force":{"device":9,"fleet":2}}')
    state.apply("edged/v1/home/device/pi/config", b'{"revision":5,"settings":{"nonsense":1}}')
    assert [6, 10, 7] == [_next_revision(state, Layer("home", name)) for name in ("device:pi", "device:other", "fleet")]
