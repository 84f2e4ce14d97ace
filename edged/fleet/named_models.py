"""Which models a device's settings name: those that no clean-up of the store may remove. Reads the agent's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edged.config.schema import build
from edged.fleet import layer_store
from edged.fleet.slots import SLOTS_FILE, SlotStore
from edged.fleet.trial_store import TrialStore
from edged.wire.layers import BadLayer, parse_layer
from edged.wire.topics import Topics

LAYERS_FILE: Final = "layers.json"
TRIALS_FILE: Final = "trials.json"


def named_models(owner: Mapping[str, Any], state_dir: Path, topics: Topics) -> frozenset[str]:
    """The sources and digests that the owner's file, a layer in force or waiting, a running trial or a slot names.

    Raises layer_store.DamagedError, or OSError where a file cannot be read.
    """
    names = {build(owner).model.source, *_named(owner)}
    stored = layer_store.load(state_dir / LAYERS_FILE, topics.own)
    for payload in (*stored.layers.values(), *(one.payload for one in stored.waiting.values())):
        names |= set(_named_by(payload))
    trials = TrialStore(state_dir / TRIALS_FILE, topics.own)
    trials.load()
    if trials.running is not None:
        names |= set(_named_by(trials.running.payload))
    slots = SlotStore(state_dir / SLOTS_FILE)
    slots.load()
    for slot in (slots.slots.in_force, slots.slots.last_good):
        if slot is not None:
            names |= {slot.source, *([slot.digest] if slot.digest else [])}
    return frozenset(names)


def _named_by(payload: bytes) -> Iterator[str]:
    try:
        layer = parse_layer(payload) if payload else None
    except BadLayer:
        return
    if layer is not None:
        yield from _named(layer.settings)
        yield from _named((layer.rollout.previous if layer.rollout is not None else None) or {})


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    model = settings.get("model", {})
    yield from (model[key] for key in ("source", "digest") if key in model)
