"""Whether a broker's port is open, just after a connection ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable

MOMENTS = (0.0, 0.05, 0.15)  # seconds before each look; one that is shutting down may still accept the first


def has_gone(
    host: str, port: int, moments: Iterable[float] = MOMENTS, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Whether one of a few TCP connections in a row is refused or fails: the broker ended, it did not throw us out."""
    for wait in moments:
        sleep(wait)
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            return True
    return False
