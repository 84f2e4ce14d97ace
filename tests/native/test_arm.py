"""The Arm kernels, cross-compiled into one static program and run under qemu-user, as a Cortex-A72 and with sdot."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.helpers import kernel_check


@pytest.mark.slow
def test_arm_kernels_agree_with_plain_cpp(tmp_path: Path) -> None:
    """`CXX_AARCH64` names a compiler other than aarch64-linux-gnu-g++, `QEMU_AARCH64` another emulator."""
    compiler = shlex.split(os.environ.get("CXX_AARCH64", "aarch64-linux-gnu-g++"))
    qemu = os.environ.get("QEMU_AARCH64") or shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not shutil.which(compiler[0]) or not qemu:
        pytest.skip("needs a C++ compiler for aarch64 and qemu-user")
    program = kernel_check(tmp_path, compiler, "aarch64", "-static")
    for cpu, names in (("cortex-a72", ["portable", "neon"]), ("max", ["portable", "neon", "dotprod"])):
        result = subprocess.run([qemu, "-cpu", cpu, str(program)], capture_output=True, text=True, check=False)
        assert [f"{name}: as plain C++" for name in names] == result.stdout.splitlines()
        assert 0 == result.returncode
