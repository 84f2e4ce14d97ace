"""What kind of place `model.source` names, from its text alone: no catalog, no store, no disk is asked."""

from __future__ import annotations

from enum import Enum


class SourceKind(Enum):
    """See `source_kind`."""

    NAME = "name"
    """A name of the catalog, or of a model in the store."""
    HUB = "hub"
    """`hf:owner/name[/file][@revision]`."""
    URL = "url"
    """`http://…` or `https://…`."""
    DIGEST = "digest"
    """`sha256:…` of a model in the store."""
    PATH = "path"
    """A file or folder on this machine."""

    @property
    def remote(self) -> bool:
        """Whether a model that is missing may be fetched. A bare name counts: it may be one of the catalog."""
        return self in (SourceKind.NAME, SourceKind.HUB, SourceKind.URL)


def source_kind(source: str) -> SourceKind:
    """The kind of a model source. Only a bare word that does not end in `.gguf` is a name."""
    if source.startswith("hf:"):
        return SourceKind.HUB
    if source.startswith(("http://", "https://")):
        return SourceKind.URL
    if source.startswith("sha256:"):
        return SourceKind.DIGEST
    if "/" in source or source.startswith((".", "~")) or source.endswith(".gguf"):
        return SourceKind.PATH
    return SourceKind.NAME
