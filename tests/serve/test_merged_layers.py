"""Which setting of a device is from which layer."""

from __future__ import annotations

import json
from typing import Any

from edged.serve.fleet_state import FleetState
from edged.serve.merged_layers import layers_of, merged


def fleet(in_force: dict[str, int], **layers: Any) -> FleetState:
    state = FleetState("home", lambda: 0.0)
    root = "edged/v1/home/"
    documents = {
        "device/pi/health": {"groups": ["kitchen", "beta"]},
        "device/pi/config/reported": {"in_force": in_force},
        "config": {"revision": 7, "settings": {"generation": {"max_tokens": 64, "temperature": 0.5}}},
        "group/kitchen/config": {"revision": 3, "settings": {"generation": {"max_tokens": 32}}},
        "group/other/config": {"revision": 1, "settings": {"generation": {"max_tokens": 1}}},
        "device/pi/config": {"revision": 2, "settings": {"generation": {"max_tokens": 16}}},
    }
    for topic, document in documents.items():
        state.apply(root + topic, json.dumps(document).encode())
    for topic, payload in layers.items():
        state.apply(root + topic.replace("__", "/"), payload)
    return state


def test_each_setting_has_its_layer_and_what_it_overrides() -> None:
    state = fleet({"fleet": 7, "group:kitchen": 3, "device": 2})
    assert [
        {"key": "generation.max_tokens", "value": 16, "layer": "device:pi", "overrides": ["fleet", "group:kitchen"]},
        {"key": "generation.temperature", "value": 0.5, "layer": "fleet", "overrides": []},
    ] == merged(layers_of(state, state.devices["pi"]))


def test_a_layer_that_the_device_has_not_in_force_sets_nothing() -> None:
    state = fleet({"fleet": 7, "group:kitchen": 3, "device": 1})
    layers = layers_of(state, state.devices["pi"])
    assert ["device:pi"] == [layer["name"] for layer in layers if not layer["in_force"]]
    assert 32 == merged(layers)[0]["value"]


def test_a_layer_that_was_rolled_back_leaves_the_one_before_by_the_history() -> None:
    state = fleet({"device": 1})
    before = {"layer": "device", "revision": 1, "phase": "applied", "settings": {"model": {"source": "good"}}}
    state.devices["pi"].history = [{**before, "revision": 2, "phase": "rolled_back", "settings": {}}, before]
    assert [{"key": "model.source", "value": "good", "layer": "device:pi", "overrides": []}] == merged(
        layers_of(state, state.devices["pi"])
    )


def test_layers_that_cannot_be_read_set_nothing() -> None:
    for payload in (b"{", b"[]", b"7", b'{"revision":"x","settings":[1]}'):
        state = fleet({"fleet": 7}, config=payload)
        state.devices["pi"].reported = {"in_force": [1]}
        assert [] == merged(layers_of(state, state.devices["pi"]))
