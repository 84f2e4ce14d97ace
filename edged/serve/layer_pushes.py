"""Config layers from the page: what a push would change, the push, and its undoing. Layers here are not signed."""

from __future__ import annotations

import json
from typing import Any

import yaml

from edged.config import checks
from edged.core.errors import BadValue
from edged.serve.broker import Broker
from edged.serve.fleet_state import FleetState
from edged.wire import strict_json
from edged.wire.layers import parse_layer
from edged.wire.next_revision import next_revision


class Layer:
    """Which layer: `fleet`, `group:NAME` or `device:NAME`. Raises BadValue for any other name."""

    def __init__(self, fleet: str, name: object) -> None:
        if not isinstance(name, str):
            raise BadValue("layer", "must be fleet, group:NAME or device:NAME")
        kind, _, inner = name.partition(":")
        if name != "fleet" and (kind not in {"group", "device"} or not checks.NAME.match(inner)):
            raise BadValue("layer", "must be fleet, group:NAME or device:NAME")
        root = f"edged/v1/{fleet}"
        self.name = name
        self.topic = f"{root}/config" if name == "fleet" else f"{root}/{kind}/{inner}/config"
        self.reported_as = "device" if kind == "device" else name


def diff_of(state: FleetState, wanted: dict[str, Any]) -> dict[str, Any]:
    """The keys that a push of `settings` (YAML or JSON text) would change. Raises BadValue."""
    layer = Layer(state.fleet, wanted.get("layer"))
    old, new = read_layer(state.layers.get(layer.name, b""))[1], _parsed(wanted.get("settings"))
    before, after = dict(flat_settings(old)), dict(flat_settings(new))
    changes = [
        {"key": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    trial = any(str(change["key"]).startswith("model.") for change in changes)
    return {"layer": layer.name, "changes": changes, "trial": trial}


async def push(broker: Broker, wanted: dict[str, Any]) -> dict[str, Any]:
    """Push the settings under the next revision. Raises BadValue, BrokerError."""
    layer = Layer(broker.state.fleet, wanted.get("layer"))
    return await _push(broker, layer, _parsed(wanted.get("settings")))


async def undo(broker: Broker, wanted: dict[str, Any]) -> dict[str, Any]:
    """Push the settings that were applied before those at the broker, by the devices' histories. As `push`."""
    layer = Layer(broker.state.fleet, wanted.get("layer"))
    _, current = read_layer(broker.state.layers.get(layer.name, b""))
    found = [
        (str(one.get("ts")), one)
        for device in broker.state.devices.values()
        if layer.reported_as != "device" or layer.name == f"device:{device.name}"
        for one in device.history
        if one.get("layer") == layer.reported_as and one.get("phase") == "applied"
    ]
    for _, one in sorted(found, key=lambda pair: pair[0], reverse=True):
        settings = one.get("settings", {} if one.get("revision") is None else None)
        if isinstance(settings, dict) and settings != current:
            return await _push(broker, layer, settings)
    raise BadValue("", f"the history of the layer {layer.name} has no other settings")


async def _push(broker: Broker, layer: Layer, settings: dict[str, Any]) -> dict[str, Any]:
    payload = strict_json.dumps({"revision": _next_revision(broker.state, layer), "settings": settings})
    revision = parse_layer(payload).revision
    await broker.publish(layer.topic, payload, retain=True)
    return {"layer": layer.name, "reported_as": layer.reported_as, "revision": revision}


def _next_revision(state: FleetState, layer: Layer) -> int:
    devices = [
        device
        for device in state.devices.values()
        if layer.reported_as != "device" or layer.name == f"device:{device.name}"
    ]
    return next_revision(
        layer.reported_as,
        state.layers.get(layer.name, b""),
        [device.reported for device in devices],
        [device.history for device in devices],
    )


def _parsed(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > 200_000:
        raise BadValue("settings", "must be settings as YAML or JSON text")
    try:
        settings = strict_json.loads(text.encode()) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (BadValue, yaml.YAMLError, RecursionError) as error:
        raise BadValue("settings", f"cannot be read as YAML or JSON ({' '.join(str(error).split())})") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise BadValue("settings", "must be a mapping of settings")
    if set(settings) & {"settings", "revision"}:
        raise BadValue("settings", "give the settings alone; the revision is chosen here")
    try:
        strict_json.dumps(settings)
    except (TypeError, ValueError):
        raise BadValue("settings", "has values that are no JSON") from None
    return settings


def read_layer(payload: bytes) -> tuple[int | None, dict[str, Any]]:
    """Revision and settings of a layer at the broker; None and no settings where they cannot be read."""
    try:
        document = json.loads(payload) if payload else {}
    except (ValueError, RecursionError):
        return None, {}
    if not isinstance(document, dict):
        return None, {}
    revision, settings = document.get("revision"), document.get("settings")
    return revision if type(revision) is int else None, settings if isinstance(settings, dict) else {}


def flat_settings(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Each setting with the path of its key."""
    flat: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat += flat_settings(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
