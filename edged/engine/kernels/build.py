"""Compiles the kernels with the system's C++ compiler into one shared library with a C interface.

    python -m edged.engine.kernels.build [--output FILE] [--machine aarch64] [--strip] [--sanitize]

Neither CMake nor a Python header is needed: the library is loaded with ctypes, so one build serves every Python
version. Each instruction set's file gets its own flags; which of them runs is chosen at run time. `CXX` names another
compiler. The same sources and the same compiler give the same bytes in every folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    f"-ffile-prefix-map={HERE}=kernels",  # no path of this machine in the library
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
)
STRIP = ("-s",)
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
# What each file of `sources` may use beyond the family's base, by processor family.
FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "isa/avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
        "isa/vnni.cpp": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512vnni"),
    },
    "aarch64": {"isa/dotprod.cpp": ("-march=armv8.2-a+dotprod",)},
}


class BuildError(Exception):
    """There is no compiler, or it refused; the message holds what it said."""


def sources() -> list[Path]:
    """The C++ files of the library, in a fixed order."""
    return sorted(HERE.glob("**/*.cpp"))


def compile_flags(source: Path, machine: str = platform.machine()) -> tuple[str, ...]:
    """What the compiler needs for one of the sources on a processor's family: its includes begin at this folder."""
    return (f"-I{HERE}", *FLAGS.get(_family(machine), {}).get(_name(source), ()))


def _family(machine: str) -> str:
    return machine.replace("AMD64", "x86_64").replace("arm64", "aarch64")


def _name(source: Path) -> str:
    return source.relative_to(HERE).as_posix()


def fingerprint(machine: str = platform.machine()) -> str:
    """Sixteen hex digits that change with any source and the processor's family: no stale library is ever loaded."""
    digest = hashlib.sha256(machine.encode())
    for path in [*sorted(HERE.glob("**/*.h")), *sources(), HERE / "build.py"]:
        digest.update(_name(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler(machine: str = platform.machine()) -> list[str]:
    """The C++ compiler's command. For another family of processors than this machine's: Debian's cross compiler."""
    if _family(machine) != _family(platform.machine()):
        cross = f"{_family(machine)}-linux-gnu-g++"
        if shutil.which(cross):
            return [cross]
        package = f"g++-{_family(machine).replace('_', '-')}-linux-gnu"
        raise BuildError(f"there is no {cross}; install it (Debian: apt-get install {package})")
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("no C++ compiler was found (install g++ or clang, or name one in CXX)")


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} cannot be started ({error})") from error
    if result.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{result.stderr[-4000:]}")


def build(
    output: Path,
    *,
    machine: str = platform.machine(),
    extra: tuple[str, ...] = (),
    link: tuple[str, ...] = (),
    jobs: int | None = None,
) -> Path:
    """Compiles the library to `output` (written whole or not at all) and returns it."""
    cxx = compiler(machine)
    with tempfile.TemporaryDirectory(prefix="edged-kernels-") as folder:
        objects = [Path(folder) / f"{_name(path).replace('/', '-')}.o" for path in sources()]
        commands = [
            [*cxx, *COMMON, *compile_flags(path, machine), *extra, "-c", str(path), "-o", str(made)]
            for path, made in zip(sources(), objects, strict=True)
        ]
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        output.parent.mkdir(parents=True, exist_ok=True)
        whole = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            _run([*cxx, "-shared", "-pthread", *extra, *link, *map(str, objects), "-o", str(whole)])
            whole.replace(output)
            for stale in set(output.parent.glob("_native-*.so")) - {output}:
                stale.unlink(missing_ok=True)
        finally:
            whole.unlink(missing_ok=True)
    return output


def main() -> int:
    """The command: prints the library's path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="default: beside the sources, where the engine looks for it")
    parser.add_argument("--machine", default=platform.machine(), help="the processor's family, if it is another one")
    parser.add_argument("--strip", action="store_true", help="without the symbols that only a debugger needs")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behaviour sanitizers")
    args = parser.parse_args()
    output = args.output or HERE / f"_native-{fingerprint(args.machine)}.so"
    extra, link = SANITIZE if args.sanitize else (), STRIP if args.strip else ()
    try:
        print(build(output, machine=args.machine, extra=extra, link=link))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
