"""The catalog: names of models that can be fetched, each with its source, size, licence and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

CACHE_TOKENS: Final = 2048  # `model.context`, where the owner's file does not say
SPARE_MEMORY: Final = 100_000_000  # bytes that are admitted above weights and cache


@dataclass(frozen=True)
class WheelPart:
    """A file inside a wheel; `size` in bytes."""

    source: str
    file: str
    size: int


@dataclass(frozen=True)
class CatalogEntry:
    """One model of the catalog. Sizes in bytes; `digest` is `sha256:` + 64 hex digits of the model file.

    An entry of the hub may have no digest (""): then the first pull takes the hub's own, and its size is `approximate`.
    `parts`: of a model in several wheels. `sampling`: values for prompts that do not set them. `context`: tokens it was
    made for; `cache`: bytes of the key/value cache for one token.
    """

    name: str
    source: str
    file: str
    size: int
    download: int
    digest: str
    licence: str
    about: str
    approximate: bool = False
    context: int = 0
    cache: int = 0
    parts: tuple[WheelPart, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the store finds the model by."""
        return self.digest or self.source

    @property
    def memory(self) -> int:
        """Bytes that are admitted for weights and a cache of `CACHE_TOKENS` with the native engine."""
        return self.size + CACHE_TOKENS * self.cache + SPARE_MEMORY

    @property
    def wheel_parts(self) -> tuple[WheelPart, ...]:
        """The files in wheels that are the model together."""
        return self.parts or (WheelPart(self.source, self.file, self.size),)


@cache
def catalog() -> dict[str, CatalogEntry]:
    """All entries by name, in the order of the file; the first is the default."""
    import yaml

    rows = yaml.safe_load(files("edged.models").joinpath("catalog.yaml").read_text("utf-8"))
    return {name: _entry(name, row) for name, row in rows.items()}


def _entry(name: str, row: dict[str, Any]) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        source=row["source"],
        file=row.get("file") or row["source"].rsplit("/", 1)[-1].partition("@")[0],
        size=row["size"],
        download=row.get("download", row["size"]),
        digest=f"sha256:{row['sha256']}" if "sha256" in row else "",
        licence=row["licence"],
        about=row["about"],
        approximate=row.get("approximate", False),
        context=row["context"],
        cache=row["cache"],
        sampling=row.get("sampling", {}),
        parts=tuple(WheelPart(part["source"], part["file"], part["size"]) for part in row.get("parts", [])),
    )


def default_model() -> str:
    """The name of the catalog's first entry."""
    return next(iter(catalog()))
