"""Old models go, oldest first; those in use stay, with what was packed from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.core.errors import ModelError
from edged.models.store import store as store_module
from edged.models.store.clean_up import CleanUp
from edged.models.store.packed_cache import FOLDER, _locked
from edged.models.store.pull import pull
from edged.models.store.store import MANIFEST, Store, StoredModel
from tests.models.web import DATA, Web, quiet

MB = 1_000_000


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored(store: Store, name: str, age: float, size: int = 100) -> StoredModel:
    """A model that was added `age` seconds before another of age 0, with a packed form of twice its size."""
    file = store.root.parent / f"{name}.gguf"
    file.write_bytes(b"GGUF" + name.encode().ljust(size - 4, b"."))
    model = store.add(file, name, f"hf:owner/{name}", "MIT")
    os.utime(model.folder / MANIFEST, (10**9 - age, 10**9 - age))
    packed(store, model.digest, 2 * size)
    return model


def packed(store: Store, digest: str, size: int = 10) -> Path:
    folder = store.root / FOLDER / f"{digest.removeprefix('sha256:')[:32]}-auto-v1"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(size))
    return folder


def names(store: Store) -> set[str]:
    return {model.name for model in store.list()}


def packed_folders(store: Store) -> int:
    return len(list((store.root / FOLDER).glob("[0-9a-f]*")))


def test_the_oldest_models_go_and_their_packed_forms_with_them(store: Store) -> None:
    for age, name in enumerate("edcba"):
        stored(store, name, age)
    said: list[str] = []
    removed = CleanUp(store, set(), said.append).down_to(3)
    assert ["a", "b"] == [model.name for model in removed]
    assert ({"c", "d", "e"}, 3) == (names(store), packed_folders(store))
    assert ["a (sha256:", "b (sha256:"] == [line[:10] for line in said]
    assert [] == CleanUp(store, set(), said.append).down_to(3)


@pytest.mark.parametrize("how", ["name", "source", "digest", "start of the digest"])
def test_a_model_in_use_stays_however_it_is_named_and_a_newer_one_goes(store: Store, how: str) -> None:
    models = [stored(store, name, age) for age, name in enumerate("cba")]
    old = models[-1]
    used = old.digest[:20] if how == "start of the digest" else str(getattr(old, how))
    CleanUp(store, {used}).down_to(2)
    assert {"a", "c"} == names(store)
    CleanUp(store, {used, models[0].digest}).down_to(1)
    assert {"a", "c"} == names(store)


def test_what_was_packed_from_files_outside_the_store_goes_unless_they_are_in_use(store: Store) -> None:
    stored(store, "a", 0)
    used, unused, being_packed = (f"sha256:{digit * 64}" for digit in "123")
    folders = [packed(store, digest) for digest in (used, unused, being_packed)]
    half = store.root / FOLDER / f".{'2' * 32}-auto-v1.part"
    half.mkdir()
    with _locked(store.root / FOLDER, being_packed):
        CleanUp(store, {used}).down_to(3)
    assert [True, False, True] == [folder.exists() for folder in folders]
    assert not half.exists()
    assert 3 == packed_folders(store)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """A disk of 1,000 bytes that holds models and packed forms."""

    class Usage:
        @property
        def free(self) -> int:
            parts = [path for path in store.root.rglob("*") if path.is_file() and path.name != MANIFEST]
            return 1000 - sum(path.stat().st_size for path in parts)

    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: Usage())


@pytest.mark.usefixtures("free")
def test_old_models_are_removed_where_a_new_one_does_not_fit_and_no_more_than_needed(store: Store) -> None:
    for age, name in enumerate("cba"):
        stored(store, name, age)  # 300 bytes each with the packed form
    room = Store(store.root, CleanUp(store, {"c"}).make_room)
    room.check_room(90)
    assert {"a", "b", "c"} == names(store)
    room.check_room(300)
    assert ({"b", "c"}, 2) == (names(store), packed_folders(store))
    with pytest.raises(ModelError, match="The model needs"):
        room.check_room(700)
    assert {"b", "c"} == names(store), "nothing is removed where that is not enough"


def test_a_pull_makes_room_first(web: Web, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(DATA)
    old = stored(store, "old", 5, 2 * size)

    class Usage:
        @property
        def free(self) -> int:
            return 300 if old.folder.exists() else 2 * size

    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: Usage())
    web.files["/m.gguf"] = DATA
    with pytest.raises(ModelError, match="The model needs"):
        pull(f"{web.url}/m.gguf", store, quiet)
    pull(f"{web.url}/m.gguf", Store(store.root, CleanUp(store, set()).make_room), quiet)
    assert {"m.gguf"} == names(store)
