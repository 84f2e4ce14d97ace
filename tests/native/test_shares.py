"""How threads share out products: a small C++ program, compiled with the sources as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edged.engine.kernels.build import HERE, BuildError, compiler


def test_each_tile_is_computed_once_by_any_number_of_threads(tmp_path: Path) -> None:
    try:
        command = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    program = tmp_path / "shares_check"
    sources = [Path(__file__).with_name("shares_check.cpp"), HERE / "threads/threads.cpp"]
    subprocess.run(
        [*command, "-std=c++17", "-O1", "-pthread", f"-I{HERE}", *map(str, sources), "-o", str(program)], check=True
    )
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert ("each tile once\n", 0) == (result.stdout, result.returncode)
