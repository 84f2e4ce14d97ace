"""Health, telemetry and events: the keys that readers rely on."""

from __future__ import annotations

import json
from typing import Any

from edged.core.health import Finding, health_of
from edged.core.prompt import ModelInfo
from edged.core.reading import Cpu, Disk, Memory, ProcessMemory, Reading
from edged.wire import documents as d

FRAME = d.Frame(1_795_507_200.0, "boot-1", clock_synced=True)
QUEUE = d.Queue(open=2, running=1, limit=64, answered=5, refused=1, bad_requests=0, dropped=0)
INFO = ModelInfo("m", "sha256:0", "llama", "float32 (from q4_1)", "torch", 2048, 4, 100)
HEAD = {"ts": "2026-11-24T08:00:00.000Z", "boot": "boot-1", "clock_synced": True}


def test_health_has_state_findings_version_mqtt_model_and_queue() -> None:
    finding = Finding("disk_low", 1_795_507_100.0, 5, 10, "make room", "failing")
    payload = d.health(
        FRAME, health_of([finding]), "0.1.0", d.LinkState("5", 3), d.ModelState("online", "m", INFO), QUEUE
    )
    document = json.loads(payload)
    assert document.items() >= {**HEAD, "state": "failing", "version": "0.1.0"}.items()
    assert [
        {
            "code": "disk_low",
            "since": "2026-11-24T07:58:20.000Z",
            "value": 5,
            "limit": 10,
            "advice": "make room",
            "severity": "failing",
        }
    ] == document["findings"]
    assert {"version": "5", "connects": 3} == document["mqtt"]
    assert document["model"].items() >= {"state": "online", "name": "m", "quantization": "float32 (from q4_1)"}.items()
    assert 2 == document["queue"]["open"]


def test_health_without_a_model_says_why() -> None:
    model = d.ModelState("safe", "m", None, error_code="tampered", error_message="remove it")
    document = json.loads(d.health(FRAME, health_of([]), "0", d.LinkState("5", 1), model, QUEUE))
    assert "ok" == document["state"]
    assert {"code": "tampered", "message": "remove it"} == document["model"]["error"]


def test_telemetry_of_a_full_reading_stays_small() -> None:
    reading = Reading(
        at=1.0,
        uptime_s=2.0,
        cpu=Cpu(12.5, 1500, (0.1, 0.2, 0.3), 4),
        memory=Memory(8, 4, 4, 0, 0),
        temperature_c=48.5,
        zones={f"zone{i}": 40.0 for i in range(30)},
        throttled=False,
        disk=Disk(100, 50),
        agent=ProcessMemory(50, 40),
        worker=ProcessMemory(900, 800),
    )
    payload = d.telemetry(FRAME, reading, d.Speed(49.1, 41.0), QUEUE)
    document: dict[str, Any] = json.loads(payload)
    assert len(payload) <= 2000
    assert document.items() >= HEAD.items()
    assert {"percent": 12.5, "clock_mhz": 1500, "load": [0.1, 0.2, 0.3], "count": 4} == document["cpu"]
    assert 900 == document["worker"]["rss_bytes"]
    assert {"tokens_per_second": 49.1, "ttft_ms": 41.0} == document["speed"]
    assert 48.5 == document["temperature_c"]
    assert document["throttled"] is False


def test_telemetry_of_a_board_that_measures_nothing_still_has_the_contracts_keys() -> None:
    document = json.loads(d.telemetry(FRAME, Reading(at=1.0, uptime_s=2.0), d.Speed(None, None), QUEUE))
    expected = {"cpu", "memory", "temperature_c", "throttled", "disk", "worker", "speed", "queue"}
    assert expected <= document.keys()
    assert {"rss_bytes": None} == document["worker"]


def test_an_event_has_a_code_a_message_and_facts() -> None:
    document = json.loads(d.event(FRAME, "worker_died", "it did", {"count": 2}))
    assert {**HEAD, "code": "worker_died", "message": "it did", "count": 2} == document
