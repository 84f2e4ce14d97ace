"""Space on the disk that holds the state folder."""

from __future__ import annotations

import os
from pathlib import Path

from edged.core.reading import Disk
from edged.device.files import GarbageError


def disk(folder: Path) -> Disk:
    """statvfs(3) of `folder`, or of its nearest parent that exists. A network file system may block here."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    total = found.f_blocks * found.f_frsize
    if total <= 0:
        raise GarbageError(f"{folder} lies on a file system without a size")
    return Disk(total_bytes=total, free_bytes=min(found.f_bavail * found.f_frsize, total))
