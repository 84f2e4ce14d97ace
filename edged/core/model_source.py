"""The one parser of `model.source`: what kind of place it names. Pure; whether anything is there is found elsewhere."""

from __future__ import annotations

from typing import Final, Literal

SourceKind = Literal["name", "digest", "hub", "address", "path"]

REMOTE: Final[frozenset[SourceKind]] = frozenset({"hub", "address"})
"""Kinds whose bytes lie on another machine: they are pulled into the store and used from there."""


def source_kind(source: str) -> SourceKind:
    """What `model.source`, or the argument of `edged model pull`, names:

    - `digest`: `sha256:…`, a model in the store;
    - `hub`: `hf:owner/name[/file][@revision]` on Hugging Face;
    - `address`: `http://…` or `https://…`;
    - `path`: a file or folder of this machine: with a `/`, or beginning with `.` or `~`, or ending in `.gguf`;
    - `name`: anything else: a name of the catalog or of a stored model, and where there is none, a bare file name.
    """
    if source.startswith("sha256:"):
        return "digest"
    if source.startswith("hf:"):
        return "hub"
    if source.startswith(("http://", "https://")):
        return "address"
    if "/" in source or source.startswith((".", "~")) or source.endswith(".gguf"):
        return "path"
    return "name"
