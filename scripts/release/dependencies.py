"""The wheels that edged needs on a board, checked against requirements.lock, and what they unpack to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from release.wheel import ROOT, PackageError

PYTHON = "3.11"  # of Debian 12 and of Raspberry Pi OS based on it
GLIBC = 36  # 2.36, of the same


def _platform_options(machine: str) -> list[str]:
    """pip's options for wheels of another machine: each older platform is named, since pip adds none by itself."""
    tag = PYTHON.replace(".", "")
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in range(17, GLIBC + 1))]
    return [
        "--only-binary=:all:",
        f"--python-version={PYTHON}",
        "--implementation=cp",
        *(f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")),
        *(f"--platform={platform}" for platform in platforms),
    ]


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"pip {words[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def download(machine: str, folder: Path) -> None:
    """Fetch each wheel that the lock names for this machine. Each must have one of the lock's hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = f"--requirement={ROOT / 'requirements.lock'}"
    _pip("download", "--quiet", "--no-deps", "--require-hashes", *_platform_options(machine), f"--dest={folder}", lock)


def unpack(wheel: Path, wheels: Path, machine: str, target: Path) -> None:
    """Install edged's wheel with `edged[serve]`'s dependencies into an empty folder, from `wheels` alone."""
    version = wheel.name.split("-")[1]
    _pip(
        "install", "--quiet", "--no-index", "--no-compile", "--root-user-action=ignore", *_platform_options(machine),
        f"--find-links={wheels}", f"--find-links={wheel.parent}", f"--target={target}", f"edged[serve]=={version}",
    )  # fmt: skip


def hashes(wheels: list[Path]) -> dict[str, str]:
    """SHA-256 of each wheel by its package's normalized name."""
    return {
        wheel.name.split("-")[0].replace("_", "-").replace(".", "-").lower(): hashlib.sha256(
            wheel.read_bytes()
        ).hexdigest()
        for wheel in wheels
    }
