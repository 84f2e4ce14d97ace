"""`edgectl top`: what every device does now, in a table that changes with its readings, until Ctrl-C."""

from __future__ import annotations

import time
from datetime import datetime

from rich.console import Console
from rich.live import Live

from edged.command_line import DONE, WrongUsage
from edged.config.schema import Mqtt
from edged.core.errors import BrokerError
from edged.ctl.interrupts import interrupting
from edged.ctl.seen import Seen, load_table, store, topics
from edged.link.session import Interrupted, Session, TimedOut

RETRY_EVERY = 3.0  # seconds between two attempts to reach a broker that is gone


def top(settings: Mqtt, fleet: str) -> int:
    """Show the table until a signal comes. A broker that goes away is tried again.

    Raises WrongUsage where stdout is no terminal, BrokerError where the broker cannot be reached at the start.
    """
    console = Console()
    if not console.is_terminal:
        raise WrongUsage("top needs a terminal; edgectl status prints the table once, with --json as JSON")
    devices: dict[str, Seen] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live:
        session = Session(settings, topics(fleet))
        while True:
            try:
                with session, interrupting(session):
                    _follow(session, fleet, devices, live)
            except (Interrupted, KeyboardInterrupt):
                return DONE
            except BrokerError as error:
                if not devices:
                    raise
                live.update(load_table(fleet, devices, f"NOT CONNECTED: {error}", console.width), refresh=True)
            try:
                time.sleep(RETRY_EVERY)
            except KeyboardInterrupt:
                return DONE
            session = Session(settings, topics(fleet))


def _follow(session: Session, fleet: str, devices: dict[str, Seen], live: Live) -> None:
    while True:
        live.update(load_table(fleet, devices, _note(devices), live.console.width), refresh=True)
        until = time.monotonic() + 0.5
        try:
            while (left := until - time.monotonic()) > 0:
                store(devices, next(session.messages(left)))
        except TimedOut:
            continue


def _note(devices: dict[str, Seen]) -> str:
    online = sum(seen.status == "online" for seen in devices.values())
    return f"{online} of {len(devices)} online, {datetime.now().astimezone():%H:%M:%S}, Ctrl-C ends"
