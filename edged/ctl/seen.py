"""What devices publish about themselves, kept by device, and tables of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from edged.config import checks
from edged.ctl.answer import plain
from edged.link.events import Arrived

WIDE = 110  # columns from which every figure has room
_COLOURS = {"online": "green", "starting": "yellow", "draining": "yellow", "safe": "red", "offline": "red"}
_HEALTH_COLOURS = {"ok": "green", "degraded": "yellow", "failing": "red"}
_DOCUMENTS = {"health": "health", "telemetry": "telemetry", "config/reported": "reported"}


class Seen(msgspec.Struct):
    """What was received from one device: its status and its newest documents."""

    status: str = "unknown"
    health: dict[str, Any] = {}
    reported: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}


def topics(fleet: str) -> tuple[str, ...]:
    """What to subscribe to."""
    return tuple(f"edged/v1/{fleet}/device/+/{what}" for what in ("status", *_DOCUMENTS))


def store(devices: dict[str, Seen], message: Arrived) -> None:
    """Keep what a message says; one that says nothing is ignored."""
    parts = message.topic.split("/", 5)
    if len(parts) < 6 or not checks.NAME.match(parts[4]):
        return
    name, what = parts[4], parts[5]
    if what == "status":
        if message.payload:
            devices.setdefault(name, Seen()).status = plain(message.payload[:16].decode("ascii", "replace"))
        else:
            devices.pop(name, None)  # it was removed
    elif what in _DOCUMENTS and message.payload:
        try:
            document = json.loads(message.payload)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict):
            setattr(devices.setdefault(name, Seen()), _DOCUMENTS[what], document)


def status_table(fleet: str, devices: Mapping[str, Seen], width: int) -> Table:
    """State, health, model, speed, memory, temperature and config of each device."""
    wide = width >= WIDE
    table = _table(f"fleet {fleet}")
    for name in ("device", "state", "health"):
        table.add_column(name, no_wrap=True)
    _add_model(table, None if wide else width - 68)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("temperature" if wide else "temp", justify="right", no_wrap=True)
    table.add_column("config in force" if wide else "config", overflow="fold", min_width=9)
    if wide:
        table.add_column("since", no_wrap=True)
    for name, seen in sorted(devices.items()):
        cells = (*_state(seen), _model(seen), _speed(seen), _memory(seen, wide=wide), _degrees(seen), _config(seen))
        table.add_row(name, *cells, *([_since(seen)] if wide else []))
    return table


def load_table(fleet: str, devices: Mapping[str, Seen], note: str, width: int) -> Table:
    """What each device does now: speed, prompts, processor, memory, temperature."""
    table = _table(f"fleet {fleet}, {note}")
    for name in ("device", "state", "health"):
        table.add_column(name, no_wrap=True)
    _add_model(table, None if width >= WIDE else width - 64)
    for name in ("tokens/s", "open", "done", "cpu", "mem", "temp"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, seen in sorted(devices.items()):
        queue, percent = _part(seen.telemetry, "queue"), _number(_part(seen.telemetry, "cpu"), "percent")
        running, waiting = _number(queue, "running"), _number(queue, "open")
        table.add_row(
            name,
            *_state(seen),
            _model(seen),
            _speed(seen),
            "–" if waiting is None else f"{waiting:.0f}" + (f" ({running:.0f})" if running else ""),
            "–" if (done := _number(queue, "answered")) is None else f"{done:.0f}",
            "–" if percent is None else f"{percent:.0f}%",
            _memory(seen, wide=False),
            _degrees(seen),
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))


def _add_model(table: Table, width: int | None) -> None:
    """The one column that may be cut: rich would shorten all of them alike."""
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=None if width is None else max(8, width))


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _number(document: Mapping[str, Any], name: str) -> float | None:
    value = document.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return escape(plain(str(value)))


def _state(seen: Seen) -> tuple[str, str]:
    health = str(seen.health.get("state", "–"))
    return (
        f"[{_COLOURS.get(seen.status, 'white')}]{escape(seen.status)}[/]",
        f"[{_HEALTH_COLOURS.get(health, 'white')}]{_text(health)}[/]",
    )


def _model(seen: Seen) -> str:
    return _text(_part(seen.health, "model").get("name", "–"))


def _speed(seen: Seen) -> str:
    speed = _number(_part(seen.telemetry, "speed"), "tokens_per_second")
    return f"{speed:.1f}" if speed else "–"


def _memory(seen: Seen, *, wide: bool) -> str:
    memory = _part(seen.telemetry, "memory")
    used, total = _number(memory, "used_bytes"), _number(memory, "total_bytes")
    if used is None or not total:
        return "–"
    return f"{used / total:.0%}" + (f" of {total / 1e9:.1f} GB" if wide else "")


def _degrees(seen: Seen) -> str:
    degrees = _number(seen.telemetry, "temperature_c")
    return "–" if degrees is None else f"{degrees:.0f} °C"


def _config(seen: Seen) -> str:
    layers = " ".join(f"{layer}:{revision}" for layer, revision in _part(seen.reported, "in_force").items())
    phase = seen.reported.get("phase")
    return _text(layers or "own file") + ("" if phase in {None, "applied"} else f" ([red]{_text(phase)}[/])")


def _since(seen: Seen) -> str:
    return _text(str(seen.reported.get("ts", "–"))[:19].replace("T", " "))
