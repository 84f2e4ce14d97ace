"""The GPU of a Jetson board.

Source: `load` of NVIDIA's nvgpu driver, busy time in thousandths (what tegrastats shows as GR3D_FREQ).
"""

from __future__ import annotations

from pathlib import Path

from edged.core.reading import Gpu
from edged.device.files import read_int

# The chip's address and generation differ between boards: 57000000.gpu, 17000000.gp10b, .gv11b, .ga10b.
_PLACES = ("gpu.0", "platform/gpu.0", "*.gpu", "platform/*.gpu", "1*000000.g[pva]*", "platform/1*000000.g[pva]*")


def find_gpu(root: Path) -> str | None:
    """The GPU's load file."""
    devices = Path(root, "sys/devices")
    for place in _PLACES:
        for path in sorted(devices.glob(f"{place}/load")):
            return str(path)
    return None


def gpu(path: str) -> Gpu:
    """Reads the load file."""
    return Gpu(read_int(path, 0, 1000) / 10)
