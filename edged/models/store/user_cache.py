"""The user's cache folder, for files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """The user's cache folder for edged, which may not exist; None where the user has no home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(chosen) if chosen else Path.home() / ".cache") / "edged"
    except RuntimeError:  # no HOME, and no entry in passwd: a container's arbitrary user
        return None
