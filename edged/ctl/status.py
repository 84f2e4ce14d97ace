"""`edgectl status`: a table of the devices of a fleet, from what they publish about themselves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from edged.config.schema import Mqtt
from edged.ctl.answer import plain
from edged.ctl.seen import Seen, status_table, store, topics
from edged.link.session import Session, TimedOut

RETAINED_WITHIN = 0.8  # seconds in which a broker delivers retained messages
FILE_WIDTH = 200  # columns of a table that goes to a file or a pipe


def show_fleet(settings: Mqtt, fleet: str, wait: float, as_json: bool) -> int:
    """Listen for at most `wait` seconds; ends early when every device that is connected has sent a reading."""
    devices: dict[str, Seen] = {}
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    with Session(settings, topics(fleet)) as session:
        if as_json or not console.is_terminal:
            for _ in _listen(session, devices, wait):
                pass
        else:
            table = status_table(fleet, devices, console.width)
            with Live(table, console=console, transient=True, refresh_per_second=4) as live:
                for _ in _listen(session, devices, wait):
                    live.update(status_table(fleet, devices, console.width))
    if as_json:
        print(
            json.dumps({name: msgspec.to_builtins(seen) for name, seen in sorted(devices.items())}, ensure_ascii=False)
        )
    elif devices:
        console.print(status_table(fleet, devices, console.width))
        _print_findings(console, devices)
    else:
        console.print(f"no device of the fleet {fleet} is known at this broker")
    return 0 if devices else 1


def _listen(session: Session, devices: dict[str, Seen], wait: float) -> Iterator[None]:
    began = time.monotonic()
    wait = max(wait, RETAINED_WITHIN)
    while (left := began + wait - time.monotonic()) > 0:
        try:
            for message in session.messages(min(left, RETAINED_WITHIN)):
                store(devices, message)
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


def _print_findings(console: Console, devices: dict[str, Seen]) -> None:
    for name, seen in sorted(devices.items()):
        findings = seen.health.get("findings")
        for finding in findings if isinstance(findings, list) else []:
            if isinstance(finding, dict):
                about = escape(plain(f"{finding.get('code')}: {finding.get('advice')}"))
                console.print(f"[yellow]{name}[/]: {about}", highlight=False)
        if seen.reported.get("phase") == "rejected":
            reason = escape(plain(str(seen.reported.get("reason"))))
            console.print(f"[red]{name}[/]: config rejected: {reason}", highlight=False)
