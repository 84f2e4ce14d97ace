"""The decision about a push: a pure function from (own file, layers in force, push) to (layers, what to report).

Every layer is judged by itself, so the order in which layers arrive never decides which of them are in force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edged.config import checks
from edged.config.schema import Settings, build, merge
from edged.core.errors import BadValue
from edged.wire.layers import BadLayer, Layer, Reported, parse_layer


class Decision(msgspec.Struct, frozen=True):
    """What holds after a push. `changed` False: nothing to do, and nothing new to report."""

    layers: Mapping[str, bytes]
    reported: Reported
    changed: bool


def decide(
    own: Mapping[str, Any], layers: Mapping[str, bytes], reported: Reported, name: str, payload: bytes
) -> Decision:
    """Judge the push `payload` to layer `name`. `layers` are the payloads in force; `own` the owner's checked file."""
    if not payload:
        return _removed(layers, name)
    try:
        layer = parse_layer(payload)
        _refuse_model_change(own, layer)
    except BadLayer as error:
        return Decision(layers, Reported("rejected", name, error.revision, str(error), revisions(layers)), changed=True)
    if name in layers and parse_layer(layers[name]) == layer:  # the same revision and content: nothing to do
        again = Reported("applied", name, layer.revision, "the layer is in force", revisions(layers))
        stale = reported.layer == name and reported.phase == "rejected"
        return Decision(layers, again if stale else reported, changed=stale)
    kept = {**layers, name: payload}
    return Decision(
        kept, Reported("applied", name, layer.revision, "the layer is in force", revisions(kept)), changed=True
    )


def _removed(layers: Mapping[str, bytes], name: str) -> Decision:
    kept = {layer: payload for layer, payload in layers.items() if layer != name}
    return Decision(kept, Reported("applied", name, None, "the layer was removed", revisions(kept)), changed=True)


def _refuse_model_change(own: Mapping[str, Any], layer: Layer) -> None:
    current = build(own).model
    for key, value in layer.settings.get("model", {}).items():
        if getattr(current, key) != value:
            sentence = (
                f"would change the model ({checks.shown(value)}); this version does not change the model by a push yet"
            )
            raise BadLayer(f"model.{key}", sentence, layer.revision)


def revisions(layers: Mapping[str, bytes]) -> dict[str, int]:
    """Layer → revision, for reports and receipts."""
    return {name: parse_layer(payload).revision for name, payload in layers.items()}


def effective(own: Mapping[str, Any], layers: Mapping[str, bytes], order: Sequence[str]) -> Settings:
    """The settings in force: the owner's file, then the layers in `order`, each laid over what is below it."""
    merged: dict[str, Any] = dict(own)
    for name in order:
        if name in layers:
            merged = merge(merged, parse_layer(layers[name]).settings)
    return build(merged)


def still_valid(own: Mapping[str, Any], layers: Mapping[str, bytes], order: Sequence[str]) -> dict[str, bytes]:
    """Those of the kept layers that this version and this file still accept, in `order`."""
    kept = {}
    for name in order:
        try:
            if name in layers:
                _refuse_model_change(own, parse_layer(layers[name]))
                kept[name] = layers[name]
        except BadValue:
            continue
    return kept
