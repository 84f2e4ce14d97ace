"""Builds edged's wheel for one processor: the kernels first, then the tag that their symbols allow, then the wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from release import elf

ROOT = Path(__file__).resolve().parents[2]
# The libraries of the system that PEP 600 lets a wheel expect, of those that we link.
GLIBC = {
    "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1",
    "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}  # fmt: skip
SYSTEM = GLIBC | {"libstdc++.so.6", "libgcc_s.so.1"}
# By glibc 2.x: the newest symbols of libstdc++ that each system with it has (from auditwheel's policies).
LIBSTDCXX = {
    17: (3, 4, 19),
    24: (3, 4, 22),
    27: (3, 4, 24),
    31: (3, 4, 28),
    34: (3, 4, 29),
    35: (3, 4, 30),
    39: (3, 4, 33),
}


class PackageError(Exception):
    """The package cannot be made; the message says what to do."""


def platform_tag(needs: elf.Needs) -> str:
    """The oldest manylinux platform (PEP 600) whose systems have the symbols of glibc and libstdc++ that are needed."""
    foreign = set(needs.libraries) - SYSTEM
    if foreign:
        raise PackageError(f"the kernels need {', '.join(sorted(foreign))}, which manylinux does not promise")
    libstdcxx = needs.newest("GLIBCXX")
    enough = [minor for minor, has in LIBSTDCXX.items() if libstdcxx <= has]
    if not enough:
        raise PackageError("the compiler's libstdc++ is newer than any manylinux platform that is known here")
    major, minor = max(needs.newest("GLIBC")[:2], (2, min(enough)))
    return f"manylinux_{major}_{minor}_{needs.machine}"


def kernels_builder() -> ModuleType:
    """`edged/engine/kernels/build.py`, loaded by path: the packages of edged need not be installed here."""
    spec = importlib.util.spec_from_file_location("kernels_build", ROOT / "edged/engine/kernels/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version() -> str:
    """The version in `edged/__init__.py`."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "edged/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found.group(1)


def build(machine: str, work: Path, output: Path) -> Path:
    """The wheel in `output`. The library is kept in `work` for the next call with the same sources and compiler."""
    builder = kernels_builder()
    library = work / machine / f"_native-{builder.fingerprint(machine)}.so"
    if not library.is_file():
        try:
            builder.build(library, machine=machine, link=builder.STRIP)
        except builder.BuildError as error:
            raise PackageError(str(error)) from error
    platform = platform_tag(elf.read(library))
    environment = {**os.environ, "WHEEL_LIBRARY": str(library), "WHEEL_PLATFORM": platform}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"the wheel cannot be built:\n{done.stdout}{done.stderr}")
    return output / f"edged-{version()}-py3-none-{platform}.whl"
