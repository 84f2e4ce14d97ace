"""The cache of packed models: packed once, bound to its source, whatever lies in its place (promise 6)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edged.core.errors import ModelError
from edged.models.formats.packed import PackedModel
from edged.models.packing.pack import pack_path
from edged.models.store import packed_cache
from edged.models.store.locate import LocatedModel, locate
from edged.models.store.packed_cache import forget, packed_model
from edged.models.store.store import Store
from edged.models.store.user_cache import user_cache
from edged.models.tokenizer import table_writer
from edged.models.tokenizer.tables import open_tables
from tests.tiny import make_gguf


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of the real user is looked at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def located(tiny_gguf: Path, tmp_path: Path) -> LocatedModel:
    return locate(str(tiny_gguf), None, Store(tmp_path))


def leftovers(models: Path) -> list[str]:
    """What lies beside the packed folders, but for the locks."""
    return [path.name for path in models.glob("packed/.*") if not path.name.endswith(".lock")]


def test_p06_two_at_once_pack_one_model_once(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find nothing; one packs, the other takes what it made, and nobody's finished folder is removed."""
    both_looked = threading.Barrier(2, timeout=60)
    open_source, pack = packed_cache.open_source, packed_cache.pack
    packs: list[Path] = []

    def slow_open(path: Path) -> object:
        both_looked.wait()
        return open_source(path)

    def counted(source: object, destination: Path, **more: object) -> object:
        packs.append(destination)
        return pack(source, destination, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(packed_cache, "open_source", slow_open)
    monkeypatch.setattr(packed_cache, "pack", counted)
    made: list[PackedModel] = []
    threads = [threading.Thread(target=lambda: made.append(packed_model(located, "auto", tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1 == len(packs)
    assert [made[0].folder] * 2 == [packed.folder for packed in made]
    made[0].verify()


def test_work_folders_of_killed_packers_are_removed(located: LocatedModel, tmp_path: Path) -> None:
    """One of this very process number, as in a container, is no obstacle either; `forget` takes all of them along."""
    name = packed_model(located, "auto", tmp_path).folder.name
    forget(tmp_path, located.digest)
    assert [] == list(tmp_path.glob("packed/[!.]*"))
    remains = tmp_path / "packed" / f".{name}.{os.getpid()}.part"
    (remains / "deep").mkdir(parents=True)
    packed_model(located, "auto", tmp_path)
    assert [] == leftovers(tmp_path)
    remains.mkdir()
    forget(tmp_path, located.digest)
    assert ([], []) == (leftovers(tmp_path), list(tmp_path.glob("packed/[!.]*")))


def test_what_lies_in_the_way_is_replaced(located: LocatedModel, tmp_path: Path) -> None:
    """A link, a broken one, a file, a folder without a manifest: removed, not followed, and packed anew."""
    place = packed_model(located, "auto", tmp_path).folder
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    for lay in (
        lambda: place.symlink_to(elsewhere),
        lambda: place.symlink_to(tmp_path / "nothing"),
        lambda: place.write_text("in the way"),
        lambda: (place / "empty").mkdir(parents=True),
    ):
        forget(tmp_path, located.digest)
        lay()
        packed_model(located, "auto", tmp_path).verify()
        assert place.is_dir()
        assert not place.is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted(path.name for path in place.iterdir())


def test_packing_onto_a_file_is_refused_in_words(tiny_gguf: Path, tmp_path: Path) -> None:
    """A file, a link and a full folder are kept as they are; an empty folder is taken."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name, words in (("file", "is not a folder"), ("link", "is not a folder"), (".", "exists already")):
        with pytest.raises(ModelError, match=words):
            pack_path(tiny_gguf, tmp_path / name)
    with pytest.raises(ModelError, match="could not be written"):
        pack_path(tiny_gguf, tmp_path / "file" / "below")
    assert "mine" == (tmp_path / "file").read_text()
    (tmp_path / "empty").mkdir()
    pack_path(tiny_gguf, tmp_path / "empty")
    assert 0o755 == (tmp_path / "empty").stat().st_mode & 0o777


def test_p06_what_was_packed_from_other_bytes_is_packed_again(located: LocatedModel, tmp_path: Path) -> None:
    """A whole packed folder under the wrong model's name is not taken for it."""
    packed = packed_model(located, "auto", tmp_path)
    other = locate(str(make_gguf(tmp_path / "other.gguf", seed=7)), None, Store(tmp_path))
    foreign = packed_model(other, "auto", tmp_path)
    right = packed.manifest.files
    forget(tmp_path, located.digest)
    foreign.folder.rename(packed.folder)
    again = packed_model(located, "auto", tmp_path)
    assert (located.digest, right) == (again.manifest.source_digest, again.manifest.files)


def test_folders_of_other_formats_go_and_other_bits_stay(located: LocatedModel, tmp_path: Path) -> None:
    """Only what this model's wish replaces is removed."""
    place = packed_model(located, "auto", tmp_path).folder
    stem = place.name.partition("-")[0]
    forget(tmp_path, located.digest)
    names = (f"{stem}-auto-v0", f"{stem}-8-v0", f"{'0' * 32}-auto-v0")
    for name in names:
        (place.parent / name).mkdir()
    packed_model(located, "auto", tmp_path)
    assert [False, True, True] == [(place.parent / name).exists() for name in names]


def test_p06_a_folder_with_token_tables_of_another_version_is_packed_again(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an older version read as a model's ends or BOS does not stay in use."""
    with monkeypatch.context() as older:
        older.setattr(packed_cache, "VERSION", 0)
        older.setattr(table_writer, "VERSION", 0)
        old = packed_model(located, "auto", tmp_path).folder
    assert open_tables(old) is None
    new = packed_model(located, "auto", tmp_path).folder
    assert open_tables(new)
    assert [new] == list(tmp_path.glob("packed/[!.]*"))


def test_a_user_without_a_home_has_no_cache_folder(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No HOME and no entry in passwd: the store is used alone, and a full store is told in words."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", lambda _: no_home())
    assert user_cache() is None
    packed_model(located, "auto", tmp_path).verify()
    forget(tmp_path, located.digest)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError) as caught:
        packed_model(located, "auto", tmp_path / "file")
    assert "no_disk" == caught.value.code


def test_p06_a_packed_folder_that_others_may_write_is_packed_again(located: LocatedModel, tmp_path: Path) -> None:
    """They could rewrite its manifest together with its bytes, and no digest in it would show that."""
    before = os.umask(0)
    try:
        folder = packed_model(located, "auto", tmp_path).folder
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o022 == 0 for path in (folder.parent, folder, *folder.iterdir()))
    kept = folder.stat().st_ino
    assert kept == packed_model(located, "auto", tmp_path).folder.stat().st_ino
    for path in (folder, next(folder.iterdir())):
        path.chmod(0o777)
        assert packed_model(located, "auto", tmp_path).folder.stat().st_mode & 0o022 == 0
        assert all(one.stat().st_mode & 0o022 == 0 for one in folder.iterdir())
