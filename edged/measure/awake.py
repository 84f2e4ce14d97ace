"""Keeps processors from sleeping during a measurement.

A processor that sleeps between two measurements has to wake for the next, and on a virtual machine the host may then
run it elsewhere, with another way to the memory: docs/benchmarks has a machine that reads at 37 GB/s or at 61.
While Linux's /dev/cpu_dma_latency is held open with a 0 in it, no processor enters a sleep that takes time to leave
(Linux, Documentation/power/pm_qos_interface.rst).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

QUALITY_OF_SERVICE: Final = Path("/dev/cpu_dma_latency")


@contextmanager
def awake(device: Path = QUALITY_OF_SERVICE) -> Iterator[bool]:
    """Inside, processors stay awake, where this process may ask for that (mostly root); yields whether it may."""
    with ExitStack() as stack:
        yield _ask(device, stack)


def _ask(device: Path, stack: ExitStack) -> bool:
    try:
        request = os.open(device, os.O_WRONLY)  # not created where it is missing
        stack.callback(os.close, request)
        os.write(request, struct.pack("=i", 0))  # microseconds
    except OSError:
        return False
    return True
