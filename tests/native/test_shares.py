"""How threads share out products: a small C++ program, linked with the library in use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edged.engine.kernels.build import HERE, BuildError, compiler
from tests.native.helpers import linked_check


def test_each_tile_is_computed_once_by_any_number_of_threads(tmp_path: Path) -> None:
    try:
        compiler()
    except BuildError as error:
        pytest.skip(str(error))
    program = linked_check(tmp_path, "shares_check.cpp", HERE / "threads/threads.cpp")
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert ("each tile once\n", 0) == (result.stdout, result.returncode)
