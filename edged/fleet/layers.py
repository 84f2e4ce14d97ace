"""The decision about a push: a pure function from (catalog, layers in force, push) to (layers, report).

Every layer is judged by itself, so the order in which layers arrive never decides which of them are in force.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from edged.config.schema import Settings, build, merge
from edged.core.errors import BadValue
from edged.fleet.plan import check_model
from edged.wire.layers import BadLayer, Layer, Reported, parse_layer


class PushedLayer(msgspec.Struct, frozen=True):
    """A layer beside the bytes that it was parsed from; the bytes are what is stored.

    `previous`: not its settings are meant, but those of before its roll-out.
    """

    payload: bytes
    layer: Layer
    previous: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that are meant; do not change them."""
        if self.previous and self.layer.rollout is not None:
            return self.layer.rollout.previous or {}
        return self.layer.settings


Layers = Mapping[str, PushedLayer]
"""Layers by name: `fleet`, `group:NAME`, `device`."""


Accept = Callable[[bytes, Layer | None], None]
"""Raises BadLayer for a push that this device does not trust. The layer is None where the payload is empty."""


class Decision(msgspec.Struct, frozen=True):
    """The layers in force after a push. `changed` False: nothing to do, and nothing new to report."""

    layers: Layers
    reported: Reported
    changed: bool


def anyone(_payload: bytes, _layer: Layer | None) -> None:
    """Accepts every push."""


def decide(
    catalog: Collection[str], layers: Layers, reported: Reported, name: str, payload: bytes, accept: Accept = anyone
) -> Decision:
    """Judge the push `payload` to layer `name`. `layers` are in force; `catalog` has the models that it may name."""
    current = layers.get(name)
    if current is not None and current.previous:
        current = None
    if payload and current is not None and current.payload == payload:
        return _again(layers, reported, name)
    try:
        pushed = parse(catalog, payload) if payload else None
        accept(payload, None if pushed is None else pushed.layer)
    except BadLayer as error:
        return rejected(layers, name, error.revision, str(error))
    if pushed is None:
        return _removed(layers, name)
    if current is not None and current.layer == pushed.layer:
        return _again(layers, reported, name)
    kept = {**layers, name: pushed}
    report = Reported("applied", name, pushed.layer.revision, "the layer is in force", revisions(kept))
    return Decision(kept, report, changed=True)


def rejected(layers: Layers, name: str, revision: int | None, reason: str) -> Decision:
    """A push to layer `name` that changes nothing."""
    return Decision(layers, Reported("rejected", name, revision, reason, revisions(layers)), changed=True)


def parse(catalog: Collection[str], payload: bytes) -> PushedLayer:
    """Parse a payload once. Raises BadLayer, also for a model that a layer may not name."""
    layer = parse_layer(payload)
    try:
        check_model(layer.settings, catalog)
    except BadValue as error:
        raise BadLayer(error.path, error.sentence, layer.revision) from None
    if layer.rollout is not None and layer.rollout.previous is not None:
        try:
            check_model(layer.rollout.previous, catalog)
        except BadValue as error:
            raise BadLayer(f"rollout.previous.{error.path}", error.sentence, layer.revision) from None
    return PushedLayer(payload, layer)


def parse_stored(
    catalog: Collection[str],
    payloads: Mapping[str, bytes],
    order: Sequence[str],
    accept: Callable[[str, PushedLayer], None] = lambda _name, _pushed: None,
    previous: Collection[str] = (),
) -> dict[str, PushedLayer]:
    """Those of the stored layers that this version and this owner still accept, in `order`.

    `previous` names those of which the settings of before their roll-out are in force.
    """
    valid = {}
    for name in order:
        try:
            if name in payloads:
                pushed = msgspec.structs.replace(parse(catalog, payloads[name]), previous=name in previous)
                accept(name, pushed)
                valid[name] = pushed
        except BadValue:
            continue
    return valid


def revisions(layers: Layers) -> dict[str, int]:
    """Layer → revision, for reports and receipts; without those that have the settings of before their roll-out."""
    return {name: pushed.layer.revision for name, pushed in layers.items() if not pushed.previous}


def effective(owner: Mapping[str, Any], layers: Layers, order: Sequence[str]) -> Settings:
    """The settings in force: the owner's file, then the layers in `order`, each merged over those before it."""
    merged: dict[str, Any] = dict(owner)
    for name in order:
        if name in layers:
            merged = _over(merged, layers[name].settings)
    return build(merged)


def _over(below: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over those below. A digest belongs to its source: another source does not keep it."""
    model = settings.get("model", {})
    if "source" in model and "digest" not in model:
        kept = {key: value for key, value in below.get("model", {}).items() if key != "digest"}
        below = {**below, "model": kept}
    return merge(below, settings)


def _again(layers: Layers, reported: Reported, name: str) -> Decision:
    """The same revision and content as in force: nothing to do."""
    again = Reported("applied", name, layers[name].layer.revision, "the layer is in force", revisions(layers))
    stale = reported.layer == name and reported.phase in {"rejected", "waiting"}
    return Decision(layers, again if stale else reported, changed=stale)


def _removed(layers: Layers, name: str) -> Decision:
    kept = {layer: pushed for layer, pushed in layers.items() if layer != name}
    return Decision(kept, Reported("applied", name, None, "the layer was removed", revisions(kept)), changed=True)
