"""The catalog: names of models that can be fetched, each with its source, size, licence and SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class CatalogEntry:
    """One model of the catalog. Sizes in bytes; `digest` is `sha256:` + 64 hex digits of the model file."""

    name: str
    source: str
    file: str
    size: int
    download: int
    digest: str
    licence: str
    about: str


@cache
def catalog() -> dict[str, CatalogEntry]:
    """All entries by name, in the order of the file; the first is the default."""
    import yaml

    rows = yaml.safe_load(files("edged.models").joinpath("catalog.yaml").read_text("utf-8"))
    return {
        name: CatalogEntry(
            name=name,
            source=row["source"],
            file=row["file"],
            size=row["size"],
            download=row["download"],
            digest=f"sha256:{row['sha256']}",
            licence=row["licence"],
            about=row["about"],
        )
        for name, row in rows.items()
    }


def default_model() -> str:
    """The name of the catalog's first entry."""
    return next(iter(catalog()))
