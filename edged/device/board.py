"""What this board is: model, processor, memory, cgroups, GPU. Read once.

Sources: Devicetree Specification 0.4, 2.3.2 (`model`); kernel drivers/firmware/dmi-id.c (/sys/class/dmi/id); proc(5)
for /proc/cpuinfo, its flags from Documentation/arch/arm64/elf_hwcaps.rst and <asm/cpufeatures.h>;
Documentation/admin-guide/cgroup-v2.rst (`cgroup.controllers`); cgroups(7) for /proc/cgroups.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from edged.device.cpu import cpu_times
from edged.device.files import GarbageError, read_head, read_text
from edged.device.gpu import find_gpu
from edged.device.memory import memory
from edged.device.rules import Limits

Kind = Literal["raspberry_pi", "jetson", "other"]
# The instructions that make a model faster; `asimddp` is the dot product of ARM.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("neon", "asimd", "asimddp", "i8mm", "fphp", "asimdhp", "bf16", "sve", "sve2"),
)
_DOT_PRODUCTS = frozenset(("avx_vnni", "avx512_vnni", "amx_int8", "asimddp"))


class Board(msgspec.Struct, frozen=True):
    """Facts that do not change while the board runs. None: not known here.

    `memory_cgroup` says whether the kernel can limit a service's memory.
    """

    model: str
    kind: Kind
    architecture: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int | None
    memory_cgroup: bool | None
    kernel: str
    gpu: str | None = None

    @property
    def has_dot_products(self) -> bool:
        """Whether the processor multiplies and adds four small integers in one instruction."""
        return not _DOT_PRODUCTS.isdisjoint(self.features)


def describe(root: Path = Path("/"), machine: str | None = None, release: str | None = None) -> Board:
    """Reads the facts below `root`. `machine` and `release` are those of uname(2) unless given."""
    uname = os.uname()
    model = _model(root)
    return Board(
        model=model or "unknown",
        kind=_kind(model or ""),
        architecture=machine or uname.machine,
        cores=_cores(root),
        features=_features(root),
        memory_bytes=_memory_bytes(root),
        memory_cgroup=memory_cgroup(root),
        kernel=release or uname.release,
        gpu=_gpu(root),
    )


def limits_for(board: Board) -> Limits:
    """The temperatures that matter: a Raspberry Pi slows down at 80 °C and more so at 85, a Jetson's chip near 99."""
    if board.kind == "raspberry_pi":
        return Limits(temperature_c=80.0, temperature_critical_c=85.0)
    if board.kind == "jetson":
        return Limits(temperature_c=90.0, temperature_critical_c=99.0)
    return Limits()


def memory_cgroup(root: Path) -> bool | None:
    """Version 2 lists its controllers in one line; version 1 has a table `name hierarchy groups enabled`."""
    if (text := _text(root, "sys/fs/cgroup/cgroup.controllers")) is not None:
        return "memory" in text.split()
    if (text := _text(root, "proc/cgroups")) is None:
        return None
    for line in text.split("\n"):
        words = line.split()
        if len(words) == 4 and words[0] == "memory":
            return words[3] == "1"
    return False


def _model(root: Path) -> str | None:
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if text := _printable(_text(root, path)):
            return text
    words = [_printable(_text(root, f"sys/class/dmi/id/{file}")) for file in ("sys_vendor", "product_name")]
    if known := " ".join(word for word in words if word):
        return known
    for line in (_head(root, "proc/cpuinfo") or "").split("\n"):
        if line.startswith(("Model", "model name")):
            return _printable(line.partition(":")[2])
    return None


def _kind(model: str) -> Kind:
    if model.startswith("Raspberry Pi"):
        return "raspberry_pi"
    return "jetson" if "jetson" in model.lower() else "other"


def _cores(root: Path) -> int:
    try:
        return cpu_times(root).count
    except (OSError, GarbageError):
        return os.cpu_count() or 1


def _features(root: Path) -> tuple[str, ...]:
    """The first processor's `flags` (x86) or `Features` (ARM)."""
    for line in (_head(root, "proc/cpuinfo") or "").split("\n"):
        key, _, rest = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            has = set(rest.split())
            return tuple(feature for feature in _FEATURES if feature in has)
    return ()


def _memory_bytes(root: Path) -> int | None:
    try:
        return memory(root).total_bytes
    except (OSError, GarbageError):
        return None


def _gpu(root: Path) -> str | None:
    for path in sorted(Path(root, "proc/driver/nvidia/gpus").glob("*/information")):
        for line in (_text(root, str(path.relative_to(root))) or "").split("\n"):
            if line.startswith("Model:"):
                return _printable(line.partition(":")[2])
    return "NVIDIA Tegra" if find_gpu(root) else None


def _text(root: Path, path: str) -> str | None:
    try:
        return read_text(f"{root}/{path}", 8192)
    except (OSError, GarbageError):
        return None


def _head(root: Path, path: str) -> str | None:
    try:
        return read_head(f"{root}/{path}", 16384)
    except (OSError, GarbageError):
        return None


def _printable(text: str | None) -> str | None:
    """Text from firmware made fit for a terminal: one line, printable, at most 80 characters."""
    if text is None:
        return None
    kept = "".join(char if char.isprintable() else " " for char in text.rstrip("\0"))
    return " ".join(kept.split())[:80] or None
