"""The Arm kernels, cross-compiled into one static program and run under qemu-user, as a Cortex-A72 and with sdot."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edged.engine.kernels.build import FLAGS, HERE

FILES = ("kernels_portable", "kernels_neon", "kernels_dotprod", "kernels_avx2", "kernels_vnni", "dispatch", "model")


@pytest.mark.slow
def test_arm_kernels_agree_with_plain_cpp(tmp_path: Path) -> None:
    """`CXX_AARCH64` names a compiler other than aarch64-linux-gnu-g++, `QEMU_AARCH64` another emulator."""
    compiler = shlex.split(os.environ.get("CXX_AARCH64", "aarch64-linux-gnu-g++"))
    qemu = os.environ.get("QEMU_AARCH64") or shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not shutil.which(compiler[0]) or not qemu:
        pytest.skip("needs a C++ compiler for aarch64 and qemu-user")
    flags = ("-std=c++17", "-O2", "-ffp-contract=off", f"-I{HERE}")
    objects = []
    for source in [*(HERE / f"{name}.cpp" for name in FILES), Path(__file__).with_name("kernel_check.cpp")]:
        objects.append(tmp_path / f"{source.stem}.o")
        own = FLAGS["aarch64"].get(source.name, ())
        subprocess.run([*compiler, *flags, *own, "-c", str(source), "-o", str(objects[-1])], check=True)
    program = tmp_path / "kernel_check"
    subprocess.run([*compiler, "-static", *map(str, objects), "-o", str(program)], check=True)
    for cpu, names in (("cortex-a72", ["portable", "neon"]), ("max", ["portable", "neon", "dotprod"])):
        result = subprocess.run([qemu, "-cpu", cpu, str(program)], capture_output=True, text=True, check=False)
        assert [f"{name}: as plain C++" for name in names] == result.stdout.splitlines()
        assert result.returncode == 0
