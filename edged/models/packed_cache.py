"""Packed folders that were made by themselves: where they lie, made when a model is first used, removed with it.

    {models}/packed/<32 hex digits of the source's digest>-<bits>-v<format>

beside the store, or in the user's cache folder where the store cannot be written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError
from edged.models.locate import LocatedModel
from edged.models.pack import open_source, pack
from edged.models.packed import FORMAT, PackedModel, is_packed, open_packed

CHECKPOINT_BITS: Final = 4  # what `bits: auto` makes of a checkpoint
FOLDER: Final = "packed"


def packed_model(
    model: LocatedModel, bits: str | int, models: Path, progress: Callable[[str], None] = lambda _: None
) -> PackedModel:
    """The verified packed form of a model whose bytes were verified: itself, or one kept or made beside the store.

    One that is damaged is made again. Raises ModelError: `unsupported` where the torch backend should take the model,
    `no_disk`, `bad_model`, `tampered` (a packed folder that was named itself).
    """
    if model.format == "packed":
        if bits != "auto":
            raise ModelError("unsupported", "A packed folder has its bits already; set model.bits to auto.")
        return _verified(model.path)
    checkpoint = model.format == "checkpoint"
    if not checkpoint and bits != "auto":
        raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
    name = f"{_stem(model.digest)}-{bits}-v{FORMAT}"
    for place in _places(models):
        if is_packed(place / name):
            try:
                return _verified(place / name)
            except ModelError:
                shutil.rmtree(place / name, ignore_errors=True)
    source = open_source(model.path)
    wanted = (CHECKPOINT_BITS if bits == "auto" else int(bits)) if checkpoint else None
    place = _writable(models, model.size)
    for old in place.glob(f"{_stem(model.digest)}-{bits}-v*"):
        shutil.rmtree(old, ignore_errors=True)
    pack(source, place / name, bits=wanted, source_digest=model.digest, progress=progress)
    return open_packed(place / name)


def _verified(folder: Path) -> PackedModel:
    packed = open_packed(folder)
    packed.verify()
    return packed


def forget(models: Path, digest: str) -> None:
    """Removes what was packed from a model of the store."""
    for place in _places(models):
        for folder in place.glob(f"{_stem(digest)}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _stem(digest: str) -> str:
    return digest.removeprefix("sha256:")[:32]


def _places(models: Path) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return models / FOLDER, cache / "edged" / FOLDER


def _writable(models: Path, size: int) -> Path:
    """The first place that can be written and has room for `size` bytes and a tenth."""
    reasons = []
    for place in _places(models):
        try:
            place.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(place).free
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
            continue
        if not os.access(place, os.W_OK):
            reasons.append(f"{place}: not writable")
        elif free < size * 11 // 10:
            reasons.append(f"{place}: {free / 1e6:,.0f} MB are free")
        else:
            return place
    raise ModelError(
        "no_disk",
        f"There is no place for the packed model of {size / 1e6:,.0f} MB ({'; '.join(reasons)}); "
        "make room there or set state_dir to a larger disk.",
    )
