"""The native tests and a bounded fuzzing, with the kernels under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.engine.kernels.build import SANITIZE, build, compiler
from tests.models.odd import odd_files
from tests.models.odd_kinds import family_files, typed_files
from tests.native.conftest import HERE

FUZZ_SECONDS = 30


def _file(name: str) -> str:
    command = [*compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return path


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the sanitized library is loaded in place of the usual one."""
    library = build(tmp_path_factory.mktemp("sanitized") / "kernels.so", extra=SANITIZE)
    # The C++ runtime as well: the sanitizer looks for what throws when it starts, before any library of ours is loaded.
    runtimes = [_file(name) for name in ("libasan.so", "libstdc++.so")]
    # Python itself leaks by design; what it allocated at start is not ours to judge.
    return {
        **os.environ,
        "KERNELS_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


@pytest.mark.slow
def test_native_tests_under_sanitizers(sanitized: dict[str, str]) -> None:
    # Not `test_kernels.py`: its program loads no library, and has a sanitized run of its own.
    chosen = [str(HERE), f"--ignore={HERE / 'test_kernels.py'}"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *chosen]
    result = subprocess.run(command, env=sanitized, capture_output=True, text=True, check=False, cwd=HERE.parent.parent)
    assert 0 == result.returncode, (result.stdout + result.stderr)[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gguf", "packed", "checkpoint"])
def test_parsers_under_fuzzing(sanitized: dict[str, str], tmp_path: Path, what: str) -> None:
    command = [sys.executable, "-m", "tests.native.fuzz", what, str(tmp_path), str(FUZZ_SECONDS)]
    result = subprocess.run(command, env=sanitized, capture_output=True, text=True, check=False, cwd=HERE.parent.parent)
    assert 0 == result.returncode, (result.stdout + result.stderr)[-4000:]
    tried, opened = map(int, result.stdout.split())
    assert tried > 100
    assert opened < tried


@pytest.mark.slow
@pytest.mark.parametrize("make", [odd_files, typed_files, family_files])
def test_damaged_files_under_sanitizers(
    sanitized: dict[str, str], tmp_path: Path, make: Callable[[Path], dict[str, Path]]
) -> None:
    """The cuts and flips of `tests/models/test_odd_files.py`: odd files, and one of every type and family."""
    make(tmp_path)
    command = [sys.executable, "-m", "tests.models.damage_odd", str(tmp_path), "500"]
    result = subprocess.run(command, env=sanitized, capture_output=True, text=True, check=False, cwd=HERE.parent.parent)
    assert 0 == result.returncode, (result.stdout + result.stderr)[-4000:]
