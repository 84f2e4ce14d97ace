"""The documents a device publishes about itself: health, telemetry, events. Types → bytes; every key is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edged.core.health import Finding, Health
from edged.core.prompt import ModelInfo
from edged.core.reading import Reading
from edged.wire import strict_json
from edged.wire.replies import rfc3339


class Frame(msgspec.Struct, frozen=True):
    """What every document carries: when, which boot of the board, whether the clock can be trusted."""

    now: float
    boot: str
    clock_synced: bool | None


class Queue(msgspec.Struct, frozen=True):
    """Prompts: `open` accepted and unanswered, of these `running`; counts since the agent's start."""

    open: int
    running: int
    limit: int
    answered: int
    refused: int
    bad_requests: int
    dropped: int


class ModelState(msgspec.Struct, frozen=True):
    """The model as health shows it. `state` is `starting`, `online` or `safe`; `doing` the step of a load.

    `loaded`: a worker has it in memory. `instead_of`: the source in force, where that cannot be loaded.
    """

    state: str
    source: str
    info: ModelInfo | None
    doing: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    restarts: int = 0
    loaded: bool = False
    instead_of: str | None = None


class LinkState(msgspec.Struct, frozen=True):
    """The connection as health shows it."""

    version: str
    connects: int


class Speed(msgspec.Struct, frozen=True):
    """Running means over finished answers; None until one was measured."""

    tokens_per_second: float | None
    ttft_ms: float | None


def health(
    frame: Frame,
    health: Health,
    version: str,
    link: LinkState,
    model: ModelState,
    queue: Queue,
    groups: Sequence[str] = (),
) -> bytes:
    """The health document. `groups`: those that the device is in."""
    return strict_json.dumps(
        {
            **_head(frame),
            "state": health.state,
            "findings": [_finding(finding) for finding in health.findings],
            "version": version,
            "groups": groups,
            "mqtt": {"version": link.version, "connects": link.connects},
            "model": _model(model),
            "queue": _queue(queue),
        }
    )


def telemetry(frame: Frame, reading: Reading, speed: Speed, queue: Queue) -> bytes:
    """One reading. What this board cannot measure is null, or left out inside a group."""
    memory = reading.memory
    document: dict[str, Any] = {
        **_head(frame),
        "uptime_s": reading.uptime_s,
        "cpu": _filled(
            percent=reading.cpu.percent,
            clock_mhz=reading.cpu.clock_mhz,
            load=reading.cpu.load,
            count=reading.cpu.count,
        ),
        "memory": {} if memory is None else msgspec.to_builtins(memory),
        "temperature_c": reading.temperature_c,
        "zones": dict(list(reading.zones.items())[:12]),
        "throttled": reading.throttled,
        "throttle": None if reading.throttle is None else msgspec.to_builtins(reading.throttle),
        "disk": {} if reading.disk is None else msgspec.to_builtins(reading.disk),
        "agent": _filled(**msgspec.to_builtins(reading.agent)) if reading.agent else {},
        "worker": _filled(**msgspec.to_builtins(reading.worker)) if reading.worker else {"rss_bytes": None},
        "speed": msgspec.to_builtins(speed),
        "queue": _queue(queue),
    }
    for name, group in (("pressure", reading.pressure), ("network", reading.network), ("gpu", reading.gpu)):
        if group is not None:
            document[name] = _filled(**msgspec.to_builtins(group))
    document |= {name: names for name, names in (("broken", reading.broken), ("stuck", reading.stuck)) if names}
    return strict_json.dumps(document)


def event(frame: Frame, code: str, message: str, facts: dict[str, Any]) -> bytes:
    """An event: a code, one sentence, and figures beside them."""
    return strict_json.dumps({**_head(frame), "code": code, "message": message, **facts})


def _head(frame: Frame) -> dict[str, Any]:
    return {"ts": rfc3339(frame.now), "boot": frame.boot, "clock_synced": frame.clock_synced}


def _filled(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "since": rfc3339(finding.since),
        "value": finding.value,
        "limit": finding.limit,
        "advice": finding.advice,
        "severity": finding.severity,
    }


def _model(model: ModelState) -> dict[str, Any]:
    document: dict[str, Any] = {
        "state": model.state,
        "source": model.source,
        "loaded": model.loaded,
        "restarts": model.restarts,
    }
    if model.instead_of is not None:
        document["instead_of"] = model.instead_of
    if model.info is not None:
        document |= {
            "name": model.info.name,
            "digest": model.info.digest,
            "architecture": model.info.architecture,
            "quantization": model.info.quantization,
            "backend": model.info.backend,
            "context": model.info.context,
            "template": model.info.template or None,
            "sampling": model.info.sampling,
        }
        if model.info.fallback:
            document["fallback"] = model.info.fallback
    if model.doing:
        document["doing"] = model.doing
    if model.error_code is not None:
        document["error"] = {"code": model.error_code, "message": model.error_message}
    return document


def _queue(queue: Queue) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(queue)
    return document
