"""Tables of what devices publish, at the width of a terminal, whatever they publish."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from edged.ctl.devices import Known
from edged.ctl.devices import store as store_known
from edged.ctl.events import entries_of
from edged.ctl.seen import Seen, load_table, status_table, store
from edged.link.events import Arrived

HEALTH = {"state": "degraded", "model": {"name": "SmolLM2-135M-Instruct.Q4_1.gguf"}, "groups": ["kitchen"]}
TELEMETRY = {
    "cpu": {"percent": 98.7},
    "memory": {"used_bytes": 5e9, "total_bytes": 8e9},
    "temperature_c": 71.4,
    "speed": {"tokens_per_second": 18.24},
    "queue": {"open": 3, "running": 2, "answered": 1234},
}
REPORTED = {"phase": "applied", "in_force": {"fleet": 7, "device": 12}, "ts": "2026-11-30T16:51:28.042Z"}


def arrived(what: str, document: Any, device: str = "kitchen-pi") -> Arrived:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Arrived(1, f"edged/v1/home/device/{device}/{what}", payload, 1, retain=True, mid=1)


def seen(*messages: Arrived) -> dict[str, Seen]:
    devices: dict[str, Seen] = {}
    for message in messages:
        store(devices, message)
    return devices


def printed(table: Any, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


FULL = (
    arrived("status", b"online"),
    arrived("health", HEALTH),
    arrived("telemetry", TELEMETRY),
    arrived("config/reported", REPORTED),
)


def test_the_status_of_a_device_is_one_line_of_80_columns() -> None:
    _, head, line = printed(status_table("home", seen(*FULL), 80), 80)
    assert ["device", "state", "health", "model", "tokens/s", "memory", "temp", "config"] == head.split()
    for word in ("kitchen-pi", "online", "degraded", "SmolLM2", "18.2", "62%", "71 °C", "fleet:7 device:12"):
        assert word in line
    wide = "\n".join(printed(status_table("home", seen(*FULL), 130), 130))
    for word in ("SmolLM2-135M-Instruct.Q4_1.gguf", "62% of 8.0 GB", "2026-11-30 16:51:28"):
        assert word in wide


def test_the_load_of_a_device_is_one_line_of_80_columns() -> None:
    _, head, line = printed(load_table("home", seen(*FULL), "now", 80), 80)
    assert ["device", "state", "health", "model", "tokens/s", "open", "done", "cpu", "mem", "temp"] == head.split()
    for word in ("kitchen-pi", "online", "degraded", "SmolLM2", "18.2", "3 (2)", "1234", "99%", "62%", "71 °C"):
        assert word in line


@pytest.mark.parametrize("what", ["health", "telemetry", "config/reported", "config/history", "event", "status"])
@pytest.mark.parametrize(
    "document",
    [
        b"\xff",
        b"[",
        b"[" * 100_000,
        [],
        5,
        {"model": 5, "state": "[/]", "findings": [5, {"code": "\x1b[2J"}], "groups": [5, "Bad Name"]},
        {"memory": {"used_bytes": "x", "total_bytes": 0}, "speed": {"tokens_per_second": "[red]"}, "queue": []},
        {"in_force": [1], "phase": "[/nonsense]", "ts": 5, "decisions": [5, {"layer": None}], "cpu": {"percent": True}},
    ],
)
def test_whatever_a_device_publishes_is_shown_as_text(what: str, document: Any) -> None:
    message = arrived(what, document)
    devices = seen(arrived("status", b"online"), message)
    text = printed(status_table("home", devices, 80), 80) + printed(load_table("home", devices, "", 80), 80)
    assert "\x1b" not in "".join(text)
    list(entries_of(message, live=True))
    known: dict[str, Known] = {}
    store_known(known, message)
    assert known.get("kitchen-pi", Known()).groups == frozenset()


def test_a_topic_that_names_no_device_is_ignored_and_a_removed_one_goes() -> None:
    assert {} == seen(arrived("status", b"online", "\x1b[2J"), arrived("status", b"online", "a b"))
    assert {} == seen(arrived("status", b"online"), arrived("status", b""))
