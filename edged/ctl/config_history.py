"""`edgectl config history` and `diff`, and which settings a layer had before."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from edged.config.schema import Mqtt
from edged.core.errors import BadValue, ConfigError
from edged.ctl.answer import plain
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut
from edged.wire import strict_json

_RETAINED_WITHIN = 0.8  # seconds in which a broker delivers retained messages

Decisions = Mapping[str, list[dict[str, Any]]]
"""The decisions by device, newest first."""


def decisions_of(message: Arrived) -> list[dict[str, Any]] | None:
    """The decisions in a message of a history topic."""
    if not message.topic.endswith("/config/history") or not message.payload:
        return None
    try:
        decisions = json.loads(message.payload)["decisions"]
    except (ValueError, KeyError, TypeError):
        return None
    return [one for one in decisions if isinstance(one, dict)] if isinstance(decisions, list) else None


def before(layer: str, current: bytes, history: Decisions) -> dict[str, Any] | None:
    """The layer as it was before the one at the broker, None where there was none. Raises ConfigError.

    Devices may have decided differently; the one that applied a push to this layer last counts.
    """
    settings = _settings(current)
    found = [(str(one.get("ts")), one) for past in history.values() for one in past if one.get("layer") == layer]
    applied = [one for _, one in sorted(found, key=lambda pair: pair[0], reverse=True) if one.get("phase") == "applied"]
    for one in applied:
        if one.get("revision") is None:
            if current:
                return None
        elif "settings" not in one:
            raise ConfigError(f"the settings of revision {one['revision']} are too long for the history; push the file")
        elif one["settings"] != settings:
            return {"settings": one["settings"]}
    raise ConfigError(f"the history of the layer {layer} has no other settings; push them from a file")


def show_history(settings: Mqtt, fleet: str, device: str | None, as_json: bool) -> int:
    """Print the last decisions of the devices."""
    topic = f"edged/v1/{fleet}/device/{device or '+'}/config/history"
    found: dict[str, list[dict[str, Any]]] = {}
    with Session(settings, (topic,)) as session:
        try:
            for message in session.messages(_RETAINED_WITHIN):
                if (decisions := decisions_of(message)) is not None:
                    found[message.topic.split("/")[4]] = decisions
        except TimedOut:
            pass
    if as_json:
        print(json.dumps({"devices": found}, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for name, decisions in sorted(found.items()):
        for one in decisions:
            for line in _lines(name, one, console.width):
                console.print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)
    if not found:
        console.print("no device has published a history yet")
    return 0


def _lines(device: str, decision: dict[str, Any], width: int) -> list[str]:
    """A decision on one line, and below it the reason, wrapped between words."""
    revision, key, reason = (decision.get(field) for field in ("revision", "key", "reason"))
    moment = str(decision.get("ts") or "–")
    when = moment[5:19].replace("T", " ") if len(moment) >= 19 else moment
    about = f"{when}  {device}  {decision.get('layer') or '–'}"
    about += " removed" if revision is None and decision.get("phase") == "applied" else ""
    about += "" if revision is None else f" revision {revision}"
    about += f"  {decision.get('phase') or '–'}" + (f"  signed by {key}" if key else "")
    below = (
        []
        if reason is None
        else textwrap.wrap(
            plain(str(reason)),
            max(width, 20),
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
    return [plain(about), *below]


def show_diff(layer: str, topic: str, current: bytes, new: dict[str, Any], devices: list[str], as_json: bool) -> int:
    """Print which settings of a layer a push would change, and on which devices."""
    old = _settings(current)
    before_keys, after_keys = dict(_flat("", old)), dict(_flat("", new))
    changes = [
        {"key": key, "before": before_keys.get(key), "after": after_keys.get(key)}
        for key in sorted({*before_keys, *after_keys})
        if before_keys.get(key) != after_keys.get(key)
    ]
    trial = any(str(change["key"]).startswith("model.") for change in changes)
    if as_json:
        document = {"topic": topic, "layer": layer, "changes": changes, "trial": trial, "devices": devices}
        print(json.dumps(document, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for change in changes:
        console.print(f"{change['key']}: {_value(change['before'])} -> {_value(change['after'])}", markup=False)
    if not changes:
        console.print(f"{layer}: nothing would change")
        return 0
    how = "is tried on" if trial else "changes in place on"
    console.print(f"{layer}: {how} {', '.join(devices) or 'no device that is known'}", markup=False)
    return 0


def _value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _settings(payload: bytes) -> dict[str, Any]:
    """The settings of a layer as they were pushed."""
    try:
        settings = strict_json.loads(payload)["settings"] if payload else {}
    except (BadValue, KeyError, TypeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _flat(prefix: str, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
