"""A device's config as it is in force: each setting, and the layer that it is from."""

from __future__ import annotations

from typing import Any

from edged.serve.fleet_state import Device, FleetState
from edged.serve.layer_pushes import flat_settings, read_layer


def layers_of(state: FleetState, device: Device) -> list[dict[str, Any]]:
    """The layers of a device, lowest precedence first: `name`, `revision`, `settings`, `in_force`.

    One at the broker that the device has not in force was rejected or rolled back, is on trial, or has not arrived. The
    settings of the one that is in force instead are those of the device's history, where it has them.
    """
    reported = device.reported.get("in_force")
    in_force = reported if isinstance(reported, dict) else {}
    layers = []
    for name in _names(device, in_force):
        short = "device" if name.startswith("device:") else name
        known = in_force.get(short)
        revision, settings = read_layer(state.layers.get(name, b""))
        same = known == revision is not None
        if known is not None and not same:
            earlier = _earlier(device, short, known)
            layers.append({"name": name, "revision": known, "settings": earlier, "in_force": True})
        if name in state.layers:
            layers.append({"name": name, "revision": revision, "settings": settings, "in_force": same})
    return layers


def _earlier(device: Device, layer: str, revision: object) -> dict[str, Any]:
    """The settings of an applied revision by the device's history; none where they are too long for it."""
    for one in device.history:
        if (one.get("layer"), one.get("revision"), one.get("phase")) == (layer, revision, "applied"):
            settings = one.get("settings")
            return settings if isinstance(settings, dict) else {}
    return {}


def merged(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each `key` of the layers in force with its `value`, the `layer` it is from, and those that it overrides."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if not layer["in_force"]:
            continue
        for key, value in flat_settings(layer["settings"]):
            over = [*found[key]["overrides"], found[key]["layer"]] if key in found else []
            found[key] = {"key": key, "value": value, "layer": layer["name"], "overrides": over}
    return [found[key] for key in sorted(found)]


def _names(device: Device, in_force: dict[str, Any]) -> list[str]:
    """Groups in the order that the device publishes, the last of which has precedence."""
    groups = device.health.get("groups")
    named = [f"group:{one}" for one in groups if isinstance(one, str)][:100] if isinstance(groups, list) else []
    others = [name for name in in_force if name.startswith("group:") and name not in named]
    return ["fleet", *named, *others[:100], f"device:{device.name}"]
