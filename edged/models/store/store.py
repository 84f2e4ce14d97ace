"""The store: one folder for each model, named by its digest, beside a small manifest.

    {root}/sha256-<hex>/manifest.json
    {root}/sha256-<hex>/<file>           a GGUF file, or a checkpoint folder

A model is put together in a temporary folder beside its place, synced, then renamed: it is there whole or not at all.
Downloads wait in `{root}/partial`. Several processes may use a store at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from edged.core.errors import ModelError
from edged.models.digest import file_sha256, folder_sha256
from edged.models.store.catalog import catalog

MANIFEST: Final = "manifest.json"
PARTIAL: Final = "partial"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the store knows of a model. `size` in bytes, `digest` is `sha256:` + 64 digits, `file` lies beside it."""

    name: str
    source: str
    licence: str
    digest: str
    file: str
    size: int


class StoredModel(msgspec.Struct, frozen=True):
    """A model in the store; `path` is a GGUF file or a checkpoint folder. Not verified until `Store.verify`."""

    name: str
    source: str
    licence: str
    digest: str
    size: int
    path: Path


class Store:
    """The models below `root`, which is made when the first one is added. Safe between processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        """Takes a model file or checkpoint folder in, by copy or (`move`, same file system) by rename.

        `file` is the file's name in the store, its own where not given.
        Raises ModelError `no_disk` where it does not fit. A model of the same digest is kept as it is.
        """
        folder = path.is_dir()
        digest = folder_sha256(path) if folder else file_sha256(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if folder else path.stat().st_size
        known = self.find(f"sha256:{digest}")
        if known and self.is_whole(known):
            if known.name == name:
                return known
            self.remove(known)  # the newest name counts
        if not move:
            self.check_room(size)
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            place = temporary / ("checkpoint" if folder else _file_name(file or path.name))
            if move:
                path.rename(place)
            elif folder:
                shutil.copytree(path, place, symlinks=False, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copyfile(path, place)
            manifest = Manifest(name, source, licence, f"sha256:{digest}", place.name, size)
            (temporary / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            _sync_tree(temporary)
            target = self.root / f"sha256-{digest}"
            if target.exists():  # a damaged one
                self._discard(target)
            temporary.chmod(0o755)
            temporary.rename(target)
            _sync_folder(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return StoredModel(name, source, licence, manifest.digest, size, target / manifest.file)

    def remove(self, model: StoredModel) -> None:
        """Deletes a model. It is renamed first, so that half of one is never found."""
        self._discard(self._folder(model))

    def verify(self, model: StoredModel) -> None:
        """Reads all of a model and compares its digest. Raises ModelError `tampered`, which says what to do."""
        if not self.is_whole(model):
            origin = model.name if model.name in catalog() else model.source
            raise ModelError(
                "tampered",
                f"The stored model {model.name} is damaged or was changed (it no longer is {model.digest[:19]}…); "
                f"run: edged model remove {model.name}, then: edged model pull {origin} "
                "(with the same --config, where one is used)",
            )

    def is_whole(self, model: StoredModel) -> bool:
        """Whether a stored model's bytes still have its digest."""
        try:
            found = folder_sha256(model.path) if model.path.is_dir() else file_sha256(model.path)
        except OSError:
            return False
        return model.digest == f"sha256:{found}"

    def check_room(self, size: int) -> None:
        """Raises ModelError `no_disk` unless 1.1 × `size` bytes are free where the store is."""
        place = self.root
        while not place.exists():
            place = place.parent
        free, needed = shutil.disk_usage(place).free, size * 11 // 10
        if needed > free:
            raise ModelError(
                "no_disk",
                f"The model needs {needed / 1e6:,.0f} MB of disk but {free / 1e6:,.0f} MB are free at {place}; "
                "make room there or set state_dir to a larger disk.",
            )

    def _folder(self, model: StoredModel) -> Path:
        return self.root / model.digest.replace(":", "-")

    def _discard(self, folder: Path) -> None:
        gone = Path(tempfile.mkdtemp(prefix=".old-", dir=self.root))
        try:
            folder.rename(gone / "model")
        except FileNotFoundError:
            pass
        finally:
            shutil.rmtree(gone, ignore_errors=True)

    def _read(self, folder: Path) -> StoredModel | None:
        try:
            manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if manifest.digest.replace(":", "-") != folder.name or manifest.file != _file_name(manifest.file):
            return None
        return StoredModel(
            manifest.name, manifest.source, manifest.licence, manifest.digest, manifest.size, folder / manifest.file
        )


def _file_name(name: str) -> str:
    """A name that stays in its folder."""
    return Path(name).name.lstrip(".") or "model"


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
