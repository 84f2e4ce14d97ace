"""`edged model prune`: what the config, the layers and the slots name stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edged.commands.main import main
from edged.config.schema import Model
from edged.fleet.slots import SLOTS_FILE, Slots, SlotStore
from edged.models.store.store import MANIFEST, Store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """Four models, d the newest."""
    monkeypatch.setenv("EDGED_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store(tmp_path / "models")
    for age, name in enumerate("abcd"):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(b"GGUF" + name.encode())
        model = store.add(file, name, f"hf:x/{name}", "MIT")
        os.utime(model.folder / MANIFEST, (10**9 + age, 10**9 + age))
    return store


def pruned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert 0 == main(["model", "prune", *words, "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_oldest_model_goes_and_the_slots_stay(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _, _ = store.list()
    SlotStore(tmp_path / SLOTS_FILE).record(Slots(Model("a", a.digest)))
    assert {"removed": [{"name": "b", "digest": b.digest}]} == pruned(capsys)
    assert {"removed": []} == pruned(capsys)
    assert 2 == len(pruned(capsys, "--keep", "1")["removed"])
    assert ["a"] == [model.name for model in store.list()]
    assert 0 == main(["model", "prune"])
    assert "no model is removed: 1 in the store, models.keep is 3\n" == capsys.readouterr().out


def test_nothing_is_removed_where_the_layers_cannot_be_read(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layers.json").write_bytes(b"garbage")
    assert 1 == main(["model", "prune", "--keep", "1"])
    assert "nothing is removed, since it is not known which models are in use" in capsys.readouterr().err
    assert 4 == len(store.list())
