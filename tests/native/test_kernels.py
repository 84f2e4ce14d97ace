"""The kernels that run on this processor against plain C++: products, norms, sampling, attention."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from edged.engine.kernels.build import HERE, SANITIZE, BuildError, compiler
from tests.native.helpers import ALL_KERNELS, kernel_check, linked_check


@pytest.fixture
def command() -> list[str]:
    try:
        return compiler()
    except BuildError as error:
        pytest.skip(str(error))


def _lines_of(program: Path) -> set[str]:
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert 0 == result.returncode, result.stdout + result.stderr
    return set(result.stdout.splitlines())


def test_kernels_agree_with_plain_cpp(command: list[str], tmp_path: Path) -> None:
    """Those of the library in use."""
    program = linked_check(tmp_path, "kernel_check.cpp", HERE / "model.cpp")
    assert _lines_of(program) == {f"{name}: as plain C++" for name in ALL_KERNELS}


@pytest.mark.slow
def test_kernels_agree_with_plain_cpp_under_sanitizers(command: list[str], tmp_path: Path) -> None:
    program = kernel_check(tmp_path, command, platform.machine(), *SANITIZE)
    assert _lines_of(program) == {f"{name}: as plain C++" for name in ALL_KERNELS}
