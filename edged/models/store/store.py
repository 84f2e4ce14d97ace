"""The store: one folder for each model, named by the model's digest, with the model and a small manifest.

    {root}/sha256-<hex>/manifest.json
    {root}/sha256-<hex>/<file>           a GGUF file, or a checkpoint folder
    {root}/.new-…, {root}/.old-…         work folders; the process that uses one locks it, unlocked ones are left over
    {root}/.lock                         held while a folder is renamed into place or removed

A model is assembled in a work folder, synced, then renamed, so it is either complete or absent. Partial downloads are
in `{root}/partial`. Several processes may use a store at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from edged import state_files
from edged.core.errors import ModelError
from edged.models.digest import file_sha256, folder_sha256
from edged.models.store.catalog import catalog

MANIFEST: Final = "manifest.json"
PARTIAL: Final = "partial"
_LOCK: Final = ".lock"
_MAX_MANIFEST: Final = 1_000_000


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's description. `size` in bytes, `digest` is `sha256:` + 64 digits, `file` is in the same folder.

    `checksum`: SHA-256 of the other values, so that a damaged manifest is never used; empty in older manifests.
    """

    name: str
    source: str
    licence: str
    digest: str
    file: str
    size: int
    checksum: str = ""

    def expected_checksum(self) -> str:
        """The correct `checksum` of this manifest."""
        values = (self.name, self.source, self.licence, self.digest, self.file, self.size)
        return hashlib.sha256(msgspec.json.encode(values)).hexdigest()


class StoredModel(msgspec.Struct, frozen=True):
    """A model in the store; `path` is a GGUF file or a checkpoint folder. Not verified until `Store.verify`."""

    name: str
    source: str
    licence: str
    digest: str
    size: int
    path: Path

    @property
    def folder(self) -> Path:
        """The model's folder in the store."""
        return self.path.parent


class Store:
    """The models below `root`, which is created when the first one is added. Safe to use from several processes.

    `make_room` is called with the number of bytes that are missing before a model is refused for lack of disk.
    """

    def __init__(self, root: Path, make_room: Callable[[int], None] = lambda _: None) -> None:
        self.root = root
        self._make_room = make_room

    def list(self) -> list[StoredModel]:
        """All models, by name. Folders without a readable manifest are left out."""
        found = [self._read(folder) for folder in sorted(self.root.glob("sha256-*")) if folder.is_dir()]
        return sorted((model for model in found if model), key=lambda model: (model.name, model.digest))

    def find(self, name: str) -> StoredModel | None:
        """The model of that name, source or digest (`sha256:…`, also its first 8 or more digits), or None."""
        if name.startswith("sha256:") and len(name) >= len("sha256:") + 8:
            matches = [model for model in self.list() if model.digest.startswith(name)]
            return matches[0] if len(matches) == 1 else None
        return next((model for model in self.list() if name in {model.name, model.source}), None)

    def add(self, path: Path, name: str, source: str, licence: str, move: bool = False, file: str = "") -> StoredModel:
        """Adds a model file or checkpoint folder, by copy or (`move`, same file system) by rename.

        `file` is the file's name in the store; if it is empty, the name stays the same.
        Raises ModelError `no_disk` if the disk has too little space. A model of the same digest is kept as it is.
        """
        folder = path.is_dir()
        digest = folder_sha256(path) if folder else file_sha256(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if folder else path.stat().st_size
        existing = self._existing(digest)
        if existing and existing.name == name and self.digest_matches(existing):
            return existing
        if not move:
            self.check_room(size)
        with self._work_folder(".new-") as temporary:
            place = temporary / ("checkpoint" if folder else _file_name(file or path.name))
            if move:
                path.rename(place)
            elif folder:
                shutil.copytree(path, place, symlinks=False, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copyfile(path, place)
            manifest = Manifest(name, source, licence, f"sha256:{digest}", place.name, size)
            manifest = msgspec.structs.replace(manifest, checksum=manifest.expected_checksum())
            (temporary / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            _sync_tree(temporary)
            self._put(temporary, self.root / f"sha256-{digest}", name)
        return StoredModel(name, source, licence, manifest.digest, size, self.root / f"sha256-{digest}" / manifest.file)

    def remove(self, model: StoredModel) -> None:
        """Deletes a model. It is renamed first, so that a partly deleted model is never found."""
        with self._locked():
            self._discard(self._folder(model))

    def clean(self) -> None:
        """Removes the work folders of processes that were killed."""
        for folder in [*self.root.glob(".new-*"), *self.root.glob(".old-*")]:
            with suppress(OSError):
                handle = _lock_folder(folder)
                _remove_tree(folder)
                os.close(handle)

    def verify(self, model: StoredModel) -> None:
        """Reads all of a model and compares its digest. Raises ModelError `tampered`, which says what to do."""
        if not self.digest_matches(model):
            origin = model.name if model.name in catalog() else model.source
            raise ModelError(
                "tampered",
                f"The stored model {model.name} is damaged or was changed "
                f"(its digest is no longer {model.digest[:19]}…); "
                f"run: edged model remove {model.name}, then: edged model pull {origin} "
                "(with the same --config, if you use one)",
            )

    def digest_matches(self, model: StoredModel) -> bool:
        """Whether a stored model's bytes still have the digest of its manifest."""
        try:
            found = folder_sha256(model.path) if model.path.is_dir() else file_sha256(model.path)
        except OSError:
            return False
        return model.digest == f"sha256:{found}"

    def check_room(self, size: int) -> None:
        """Raises ModelError `no_disk` unless 1.1 × `size` bytes are free on the store's file system, or can be made."""
        place = self.root
        while not place.exists():
            place = place.parent
        free, needed = shutil.disk_usage(place).free, size * 11 // 10
        if needed > free:
            self._make_room(needed - free)
            free = shutil.disk_usage(place).free
        if needed > free:
            raise ModelError(
                "no_disk",
                f"The model needs {needed / 1e6:,.0f} MB of disk but {free / 1e6:,.0f} MB are free at {place}; "
                "free space there or set state_dir to a larger disk.",
            )

    def _folder(self, model: StoredModel) -> Path:
        return self.root / model.digest.replace(":", "-")

    def _existing(self, digest: str) -> StoredModel | None:
        return self._read(self.root / f"sha256-{digest}")

    def _put(self, temporary: Path, target: Path, name: str) -> None:
        """Rename a finished work folder to `target`, unless another process has added the same model meanwhile."""
        with self._locked():
            existing = self._read(target)
            if existing and existing.name == name and self.digest_matches(existing):
                return
            self._discard(target)  # it is damaged or has another name: the newest model is kept
            temporary.chmod(0o755)
            temporary.rename(target)
            state_files.sync_folder(self.root)

    def _discard(self, folder: Path) -> None:
        if not os.path.lexists(folder):
            return
        with self._work_folder(".old-") as gone:
            folder.rename(gone / "model")

    @contextmanager
    def _work_folder(self, prefix: str) -> Iterator[Path]:
        """A new folder below the root, removed afterwards unless it was renamed; locked against `clean` elsewhere."""
        folder, handle = self._claim(prefix)
        try:
            yield folder
        finally:
            _remove_tree(folder)
            os.close(handle)

    def _claim(self, prefix: str) -> tuple[Path, int]:
        """Creates a folder and locks it; returns the folder and the handle of the lock."""
        make_folder(self.root)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self.root))
            with suppress(FileNotFoundError, BlockingIOError):  # another process removed it before it was locked
                handle = _lock_folder(folder)
                if folder.exists():
                    return folder, handle
                os.close(handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.root)
        with file_lock(self.root / _LOCK):
            yield

    def _read(self, folder: Path) -> StoredModel | None:
        try:
            manifest = msgspec.json.decode(state_files.read(folder / MANIFEST, _MAX_MANIFEST), type=Manifest)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return None
        if manifest.checksum not in {"", manifest.expected_checksum()}:
            return None
        if manifest.digest.replace(":", "-") != folder.name or manifest.file != _file_name(manifest.file):
            return None
        return StoredModel(
            manifest.name, manifest.source, manifest.licence, manifest.digest, manifest.size, folder / manifest.file
        )


def _file_name(name: str) -> str:
    """The last part of a path, so that the file is inside the model's folder."""
    return Path(name).name.lstrip(".") or "model"


def make_folder(folder: Path) -> None:
    """Create a folder; anything else at its path is renamed first. Raises OSError."""
    with suppress(FileExistsError, NotADirectoryError):
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        state_files.set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock between processes; `waiting` is called if another process has it.

    Anything at `path` that is not a file is renamed first.
    """
    try:
        state_files.check(path)
    except OSError:
        state_files.set_aside(path)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_folder(folder: Path) -> int:
    """A handle that holds a folder's own lock until it is closed. Raises BlockingIOError if another process has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            state_files.sync_folder(path)
