"""`edgectl status`: a table of the devices of a fleet, from what they publish about themselves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edged.config.schema import Mqtt
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut

RETAINED_WITHIN = 0.8  # seconds in which a broker delivers retained messages
_COLOURS = {"online": "green", "starting": "yellow", "draining": "yellow", "safe": "red", "offline": "red"}
_HEALTH_COLOURS = {"ok": "green", "degraded": "yellow", "failing": "red"}


class Seen(msgspec.Struct):
    """What was received from one device: its status and its newest documents."""

    status: str = "unknown"
    health: dict[str, Any] = {}
    reported: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}


def show_fleet(settings: Mqtt, fleet: str, wait: float, as_json: bool) -> int:
    """Listen for at most `wait` seconds; ends early when every device that is connected has sent a reading."""
    devices: dict[str, Seen] = {}
    root = f"edged/v1/{fleet}/device"
    topics = tuple(f"{root}/+/{what}" for what in ("status", "health", "config/reported", "telemetry"))
    console = Console(width=None if sys.stdout.isatty() else 200)  # a file or a pipe has no width to fit into
    with Session(settings, topics) as session:
        if as_json or not console.is_terminal:
            for _ in _listen(session, devices, root, wait):
                pass
        else:
            with Live(_table(fleet, devices), console=console, transient=True, refresh_per_second=4) as live:
                for _ in _listen(session, devices, root, wait):
                    live.update(_table(fleet, devices))
    if as_json:
        print(
            json.dumps({name: msgspec.to_builtins(seen) for name, seen in sorted(devices.items())}, ensure_ascii=False)
        )
    elif devices:
        console.print(_table(fleet, devices))
        _print_findings(console, devices)
    else:
        console.print(f"no device of the fleet {fleet} is known at this broker")
    return 0 if devices else 1


def _listen(session: Session, devices: dict[str, Seen], root: str, wait: float) -> Iterator[None]:
    began = time.monotonic()
    while (left := began + max(wait, RETAINED_WITHIN) - time.monotonic()) > 0:
        try:
            for message in session.messages(min(left, RETAINED_WITHIN)):
                _store(devices, root, message)
                yield
                age = time.monotonic() - began
                if age > wait or (age > RETAINED_WITHIN and _all_reported(devices)):
                    return
        except TimedOut:
            pass
        if _all_reported(devices):
            return


def _all_reported(devices: dict[str, Seen]) -> bool:
    return all(seen.telemetry or seen.status in {"offline", "unknown"} for seen in devices.values())


def _store(devices: dict[str, Seen], root: str, message: Arrived) -> None:
    name, _, what = message.topic[len(root) + 1 :].partition("/")
    if not message.payload:
        return
    seen = devices.setdefault(name, Seen())
    if what == "status":
        seen.status = message.payload[:16].decode("ascii", "replace")
        return
    try:
        document = json.loads(message.payload)
    except ValueError:
        return
    if isinstance(document, dict):
        setattr(seen, {"health": "health", "telemetry": "telemetry"}.get(what, "reported"), document)


def _table(fleet: str, devices: dict[str, Seen]) -> Table:
    columns = ("device", "state", "health", "model", "tokens/s", "memory", "temperature", "config in force", "since")
    table = Table(*columns, title=f"fleet {fleet}", title_justify="left", box=None, header_style="bold")
    for name, seen in sorted(devices.items()):
        table.add_row(name, *_cells(seen))
    return table


def _cells(seen: Seen) -> tuple[str, ...]:
    health = str(seen.health.get("state", "–"))
    memory, speed = seen.telemetry.get("memory") or {}, (seen.telemetry.get("speed") or {}).get("tokens_per_second")
    degrees = seen.telemetry.get("temperature_c")
    in_force = seen.reported.get("in_force") or {}
    phase = seen.reported.get("phase")
    config = " ".join(f"{layer}:{revision}" for layer, revision in in_force.items()) or "own file"
    return (
        f"[{_COLOURS.get(seen.status, 'white')}]{seen.status}[/]",
        f"[{_HEALTH_COLOURS.get(health, 'white')}]{health}[/]",
        str((seen.health.get("model") or {}).get("name", "–")),
        f"{speed:.1f}" if speed else "–",
        f"{memory['used_bytes'] / memory['total_bytes']:.0%} of {memory['total_bytes'] / 1e9:.1f} GB"
        if memory
        else "–",
        f"{degrees:.0f} °C" if degrees is not None else "–",
        config + ("" if phase in {None, "applied"} else f" ([red]{phase}[/])"),
        str(seen.reported.get("ts", "–"))[:19].replace("T", " "),
    )


def _print_findings(console: Console, devices: dict[str, Seen]) -> None:
    for name, seen in sorted(devices.items()):
        for finding in seen.health.get("findings") or []:
            console.print(
                f"[yellow]{name}[/]: {finding.get('code')}: {escape(str(finding.get('advice')))}", highlight=False
            )
        if seen.reported.get("phase") == "rejected":
            console.print(
                f"[red]{name}[/]: config rejected: {escape(str(seen.reported.get('reason')))}", highlight=False
            )
