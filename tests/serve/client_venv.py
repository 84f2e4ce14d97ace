"""A virtual environment for one client, which a slow test installs from the package index."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest


def install(folder: Path, *packages: str) -> Path:
    """The folder of its programs. Skips the test where the packages cannot be had."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot install {' '.join(packages)}: {done.stderr[-300:]}")
    return folder / "bin"


def run(program: list[str | Path], timeout: float = 300) -> str:
    """What a program prints; a failure shows all of it."""
    done = subprocess.run(
        [str(word) for word in program], capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
    )
    assert 0 == done.returncode, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def run_python(programs: Path, source: str, *arguments: str) -> str:
    """What a text of Python prints there."""
    return run([programs / "python", "-c", source, *arguments])
