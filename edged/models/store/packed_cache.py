"""Packed folders that edged makes by itself when a model is first used, and removes with the model.

    {models}/packed/<32 hex digits of the source's digest>-<bits>-v<format>.<version of the token tables>
    {models}/packed/.<32 hex digits>.lock      locked by the process that makes or removes folders of that model

beside the store, or in the user's cache folder where the store cannot be written.

What is verified: every byte against the folder's own manifest, and the manifest's source against the model. That finds
damage. It cannot find a change by somebody who may write the folder and rewrites its manifest too; so a folder that
anyone but its user, the store's owner or root owns or may write is never used, but packed again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError
from edged.models.formats.packed import FORMAT, PackedModel, is_packed, open_packed
from edged.models.packing.pack import open_source, pack
from edged.models.store.locate import LocatedModel
from edged.models.store.user_cache import user_cache
from edged.models.tokenizer.tables import VERSION

CHECKPOINT_BITS: Final = 4  # what `bits: auto` makes of a checkpoint
FOLDER: Final = "packed"
_STEM_DIGITS: Final = 32


def packed_model(
    model: LocatedModel, bits: str | int, models: Path, progress: Callable[[str], None] = lambda _: None
) -> PackedModel:
    """The verified packed form of a model whose bytes were verified: itself, or one kept or made beside the store.

    One that is damaged, or was made from other bytes, is made again. Several processes may ask for a model at once; one
    of them packs it. Raises ModelError: `unsupported` where the torch backend should take the model, `no_disk`,
    `bad_model`, `tampered` (a packed folder that was named itself).
    """
    if model.format == "packed":
        if bits != "auto":
            raise ModelError(
                "unsupported", "The weights of a packed folder are quantized already; set model.bits to auto."
            )
        return _verified(model.path)
    checkpoint = model.format == "checkpoint"
    if not checkpoint and bits != "auto":
        raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
    name = f"{_stem(model.digest)}-{bits}-v{FORMAT}.{VERSION}"
    for place in _places(models):
        if kept := _kept(place / name, model.digest, models):
            return kept
    source = open_source(model.path)
    wanted = (CHECKPOINT_BITS if bits == "auto" else int(bits)) if checkpoint else None
    reasons = []
    for place in _places(models):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                _deny_others(place)
            with _locked(place, model.digest, progress):
                # Another process may have packed it since, or while this one waited.
                if kept := _kept(place / name, model.digest, models):
                    return kept
                _clear(place, name, f"{_stem(model.digest)}-{bits}-v", progress)
                if why := _no_space(place, model.size):
                    reasons.append(why)
                    continue
                pack(source, place / name, bits=wanted, source_digest=model.digest, progress=progress)
                _close_to_others(place / name)
                return open_packed(place / name)
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
    raise ModelError(
        "no_disk",
        f"There is no space for the packed model of {model.size / 1e6:,.0f} MB ({'; '.join(reasons)}); "
        "free space there or set state_dir to a larger disk.",
    )


def forget(models: Path, digest: str) -> None:
    """Removes what was packed from a model of the store, and what was left of packing it."""
    for place in _places(models):
        with suppress(OSError):
            if not place.is_dir():
                continue
            with _locked(place, digest):
                for pattern in (f"{_stem(digest)}-*", f".{_stem(digest)}-*.part"):
                    for old in place.glob(pattern):
                        with suppress(OSError):
                            _remove(old)


def forget_others(models: Path, digests: Iterable[str]) -> list[str]:
    """Removes what is kept beside the store and was packed from none of these models; gives the folders' names.

    What a process is packing now is left alone. Folders of the user's cache may serve others, so they stay.
    """
    place, kept, removed = models / FOLDER, {_stem(digest) for digest in digests}, []
    for folder in [*place.glob("[0-9a-f]*-*"), *place.glob(".*-*.part")]:
        stem = folder.name.lstrip(".").partition("-")[0]
        if stem in kept or len(stem) != _STEM_DIGITS:
            continue
        with suppress(OSError), _locked(place, stem, wait=False):
            _remove(folder)
            removed.append(folder.name)
    return removed


def packed_bytes(models: Path, digest: str) -> int:
    """The bytes that the packed forms of a model use beside the store."""
    return sum(path.lstat().st_size for path in (models / FOLDER).glob(f"{_stem(digest)}-*/*") if not path.is_symlink())


def _verified(folder: Path) -> PackedModel:
    packed = open_packed(folder)
    packed.verify()
    return packed


def _kept(folder: Path, digest: str, models: Path) -> PackedModel | None:
    """The packed model in `folder`; None where it is damaged, others may write it, it was made from another model or
    is not there.

    A link is never followed: another user may own and change what it points to.
    """
    try:
        if folder.is_symlink() or not is_packed(folder) or not _is_ours(folder, models):
            return None
        packed = open_packed(folder)
        if packed.manifest.source_digest != digest:
            return None
        packed.verify()
    except (ModelError, OSError):
        return None
    return packed


def _is_ours(folder: Path, models: Path) -> bool:
    """Whether only this user, the store's owner and root may change a folder, its files and their place."""
    owners = {0, os.geteuid(), *([models.stat().st_uid] if models.exists() else [])}
    for path in (folder.parent, folder, *folder.iterdir()):
        facts = path.lstat()
        if facts.st_uid not in owners or (facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
    return True


def _close_to_others(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        _deny_others(path)


def _deny_others(path: Path) -> None:
    """Whatever the umask is, nobody but its owner writes here."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _clear(place: Path, name: str, other_versions: str, progress: Callable[[str], None]) -> None:
    """Removes a damaged folder `name`, those of other formats and versions, and the work folders of packers that
    were killed.

    Raises OSError where `name` stays. Call it with the lock held: then no other process uses those folders.
    """
    stem = name.partition("-")[0]
    for old in [*place.glob(f"{other_versions}*"), *place.glob(f".{stem}-*.part")]:
        if old.name != name:
            with suppress(OSError):
                _remove(old)
    if (place / name).exists():
        progress("the packed model is damaged; packing it again (check the disk)")
    with suppress(FileNotFoundError):
        _remove(place / name)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextmanager
def _locked(
    place: Path, digest: str, progress: Callable[[str], None] = lambda _: None, *, wait: bool = True
) -> Iterator[None]:
    """Holds the lock of one model's folders in `place`; waits for another process that has it, or raises OSError."""
    with (place / f".{_stem(digest)}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            progress("waiting for another process that packs the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stem(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_STEM_DIGITS]


def _places(models: Path) -> Iterator[Path]:
    yield models / FOLDER
    cache = user_cache()
    if cache:
        yield cache / FOLDER


def _no_space(place: Path, size: int) -> str | None:
    """Why `place` has no space for 1.1 × `size` bytes; None where it has."""
    if not os.access(place, os.W_OK):
        return f"{place}: not writable"
    free = shutil.disk_usage(place).free
    return f"{place}: {free / 1e6:,.0f} MB are free" if free < size * 11 // 10 else None
