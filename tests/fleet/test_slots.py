"""The two slots, and which models the files of a device name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.config.schema import Model
from edged.fleet import layer_store
from edged.fleet.named_models import LAYERS_FILE, TRIALS_FILE, named_models
from edged.fleet.slots import SLOTS_FILE, Slots, SlotStore
from edged.fleet.trial_store import Running, TrialStore
from edged.wire.topics import Topics

A, B, C = (Model(source=name, digest=f"sha256:{name * 64}") for name in "abc")
TOPICS = Topics("home", "pi")


def test_the_slots_hold_the_last_two_models_that_served() -> None:
    slots = Slots()
    for served, expected in [(A, Slots(A)), (A, Slots(A)), (B, Slots(B, A)), (C, Slots(C, B)), (B, Slots(B, C))]:
        slots = slots.with_served(served)
        assert expected == slots


def test_other_settings_of_the_same_bytes_do_not_push_the_other_model_out() -> None:
    longer = Model(source="b", digest=B.digest, context=9000)
    assert Slots(longer, A) == Slots(B, A).with_served(longer)


def test_p04_what_is_tried_instead_of_a_model_is_never_that_model() -> None:
    slots = Slots(A, B)
    assert (B,) == slots.instead_of(A)
    assert (B,) == slots.instead_of(Model(source="a", keep_alive=60.0))
    assert (A, B) == slots.instead_of(C)
    assert (A, B) == slots.instead_of(Model(source="a", context=9000)), "it served with another context"
    assert (A, B) == slots.instead_of(Model(source="a", digest=C.digest)), "another file of the same name"
    assert () == Slots().instead_of(A)


def test_slots_outlast_a_restart_and_a_damaged_file_leaves_them_empty(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / SLOTS_FILE)
    store.load()
    store.record(Slots(B, A))
    again = SlotStore(tmp_path / SLOTS_FILE)
    again.load()
    assert Slots(B, A) == again.slots
    for damage in (b"", b"{}", (tmp_path / SLOTS_FILE).read_bytes().replace(b"bbb", b"bbc")):
        (tmp_path / SLOTS_FILE).write_bytes(damage)
        again.load()
        assert not (tmp_path / SLOTS_FILE).exists()
        store.record(Slots(B, A))
        again = SlotStore(tmp_path / SLOTS_FILE)


def layer(model: dict[str, Any]) -> bytes:
    return json.dumps({"revision": 1, "settings": {"model": model}}).encode()


def test_the_file_every_layer_the_trial_and_the_slots_name_models(tmp_path: Path) -> None:
    assert {"smollm2-135m-instruct"} == named_models({}, tmp_path, TOPICS)
    pushed = {"fleet": layer({"source": "f", "digest": "sha256:" + "1" * 64}), "device": layer({"source": "d"})}
    layer_store.save(tmp_path / LAYERS_FILE, layer_store.StoredLayers(TOPICS.own, pushed, layer_store.NOTHING_PUSHED))
    TrialStore(tmp_path / TRIALS_FILE, TOPICS.own).begin(Running("device", layer({"source": "tried"})))
    SlotStore(tmp_path / SLOTS_FILE).record(Slots(A, B))
    expected = {"/m.gguf", "f", "sha256:" + "1" * 64, "d", "tried", "a", "b", A.digest, B.digest}
    assert expected == named_models({"model": {"source": "/m.gguf"}}, tmp_path, TOPICS)


def test_layers_that_cannot_be_read_are_an_error_and_not_no_layers(tmp_path: Path) -> None:
    (tmp_path / LAYERS_FILE).write_bytes(b"garbage")
    with pytest.raises(layer_store.DamagedError):
        named_models({}, tmp_path, TOPICS)
