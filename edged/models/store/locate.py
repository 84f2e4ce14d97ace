"""From `model.source` to verified bytes on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edged.core.errors import ModelError
from edged.core.model_source import source_kind
from edged.models.digest import file_sha256, files_sha256, folder_sha256
from edged.models.formats.checkpoint import check_folder
from edged.models.formats.gguf_split import part_paths
from edged.models.formats.packed import is_packed, packed_digest
from edged.models.store.catalog import catalog
from edged.models.store.store import Store, StoredModel


@dataclass(frozen=True)
class LocatedModel:
    """A model whose bytes were just verified. `path` is a GGUF file or a folder, `size` in bytes.

    Of a packed folder only the manifest was read; who opens it verifies the rest by that (`PackedModel.verify`).
    """

    name: str
    path: Path
    digest: str
    format: Literal["gguf", "checkpoint", "packed"]
    size: int


def locate(source: str, digest: str | None, store: Store) -> LocatedModel:
    """Finds a model and verifies it: a catalog name, `sha256:…` or `hf:…` in the store, a GGUF file, a folder.

    `digest` (`sha256:` + 64 hex digits) must match where it is given. Reads the whole model once.
    Raises ModelError `missing` (pull it), `tampered` (remove and pull it), `unsupported` or `bad_model`.
    """
    entry = catalog().get(source)
    if entry or source_kind(source) in {"digest", "hub", "address"}:
        stored = store.find(entry.key if entry else source) or (store.find(digest) if digest else None)
        if stored is None:
            raise ModelError(
                "missing", f"The model {source} is not in the store; fetch it with: edged model pull {source}"
            )
        located = _from_store(source, stored, store)
        digest = digest or (entry.digest if entry else None)
    else:
        located = _from_disk(source, store)
    if digest and digest != located.digest:
        raise ModelError(
            "tampered",
            f"The model {source} has the digest {located.digest}, not {digest} as configured; "
            "correct model.digest or give the model that has it.",
        )
    if located.format == "checkpoint":
        check_folder(located.path)
    return located


def _from_disk(source: str, store: Store) -> LocatedModel:
    """A path, or where there is none the name of a stored model."""
    path = Path(source).expanduser()
    if path.exists():
        return _describe(path.name, path, digest_of(path))
    stored = store.find(source)
    if stored is None:
        names = ", ".join(catalog())
        raise ModelError("missing", f"There is no model {source}: give a path, or a name of the catalog ({names}).")
    return _from_store(source, stored, store)


def _from_store(source: str, stored: StoredModel, store: Store) -> LocatedModel:
    store.verify(stored)
    return _describe(source, stored.path, stored.digest)


def digest_of(path: Path) -> str:
    """The digest of a model file (of all its parts), checkpoint folder or packed folder, `sha256:` + 64 hex digits."""
    if is_packed(path):
        return packed_digest(path)
    parts = [path] if path.is_dir() else part_paths(path)
    if len(parts) > 1:
        return f"sha256:{files_sha256((part.name, part) for part in parts)}"
    return f"sha256:{folder_sha256(path) if path.is_dir() else file_sha256(path)}"


def _describe(name: str, path: Path, digest: str) -> LocatedModel:
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return LocatedModel(name, path, digest, "packed" if is_packed(path) else "checkpoint", size)
    parts = part_paths(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(
            "unsupported", f"{path.name} is not a GGUF file; give a .gguf file or a folder with safetensors."
        )
    return LocatedModel(name, parts[0], digest, "gguf", sum(part.stat().st_size for part in parts))
