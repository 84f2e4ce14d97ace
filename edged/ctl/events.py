"""`edgectl events`: what has happened on the devices, and what happens.

The broker retains findings and decisions about configs; events and changes of the status are seen while they come.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple

from edged.command_line import DONE, note
from edged.config import checks
from edged.config.schema import Mqtt
from edged.ctl.answer import plain
from edged.ctl.devices import RETAINED_WITHIN
from edged.ctl.interrupts import interrupting
from edged.link.events import Arrived
from edged.link.session import Interrupted, Session, TimedOut

RETAINED_AT_MOST = 3.0  # seconds for all that is retained, however much is published meanwhile
FOREVER = 1_000_000.0  # seconds


class Entry(NamedTuple):
    """One thing that happened: RFC 3339 time, device, code, a sentence."""

    ts: str
    device: str
    code: str
    message: str


def events(settings: Mqtt, fleet: str, device: str | None, *, follow: bool, as_json: bool) -> int:
    """Print what is retained in the order of time; with `follow` go on until Ctrl-C. Returns the exit code.

    Raises BrokerError.
    """
    root = f"edged/v1/{fleet}/device/{device or '+'}"
    topics = tuple(f"{root}/{what}" for what in ("status", "health", "config/history", "event"))
    ends = suppress(Interrupted, KeyboardInterrupt) if follow else nullcontext()
    with ends, Session(settings, topics) as session, interrupting(session):
        past = _retained(session)
        if as_json and not follow:
            print(json.dumps({"events": [entry._asdict() for entry in past]}, ensure_ascii=False))
            return DONE
        for entry in past:
            _print(entry, as_json)
        if follow:
            _follow(session, as_json)
        elif not past:
            note(f"nothing is retained about the fleet {fleet}; --follow waits for events")
    return DONE


def _retained(session: Session) -> list[Entry]:
    """What the broker retains, oldest first."""
    past: list[Entry] = []
    until = time.monotonic() + RETAINED_AT_MOST
    with suppress(TimedOut):
        while (left := until - time.monotonic()) > 0:
            past += entries_of(next(session.messages(min(left, RETAINED_WITHIN))), live=False)
    return sorted(past)


def _follow(session: Session, as_json: bool) -> None:
    """Print what happens. Raises Interrupted."""
    for message in session.messages(FOREVER):
        if not message.topic.endswith(("/health", "/config/history")):  # an event comes with each change
            for entry in entries_of(message, live=True):
                _print(entry, as_json)


def _print(entry: Entry, as_json: bool) -> None:
    if as_json:
        print(json.dumps(entry._asdict(), ensure_ascii=False), flush=True)
    else:
        print(plain(f"{entry.ts[:19].replace('T', ' ')}  {entry.device}  {entry.code}: {entry.message}"), flush=True)


def entries_of(message: Arrived, *, live: bool) -> Iterator[Entry]:
    """What a message of a device says has happened. `live`: it was published just now, so a status has changed."""
    parts = message.topic.split("/", 5)
    if len(parts) < 6 or not checks.NAME.match(parts[4]) or not message.payload:
        return
    device, what = parts[4], parts[5]
    if what == "status":
        if live:
            yield Entry(_now(), device, "status", message.payload[:16].decode("ascii", "replace"))
        return
    try:
        document = json.loads(message.payload)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        yield from _of_document(device, what, document)


def _of_document(device: str, what: str, document: dict[str, Any]) -> Iterator[Entry]:
    if what == "event":
        yield Entry(_text(document, "ts"), device, _text(document, "code"), _text(document, "message"))
    elif what == "health":
        for finding in _list(document, "findings"):
            yield Entry(_text(finding, "since"), device, _text(finding, "code"), _text(finding, "advice"))
    elif what == "config/history":
        for decision in _list(document, "decisions"):
            layer, revision = _text(decision, "layer"), decision.get("revision")
            about = f"{layer} {_text(decision, 'phase')}" + ("" if revision is None else f", revision {revision}")
            reason = _text(decision, "reason")
            yield Entry(_text(decision, "ts"), device, "config", f"{about}: {reason}" if reason else about)


def _list(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = document.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    return "" if value is None else str(value)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
