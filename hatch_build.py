"""Compiles the native engine's kernels while a wheel is built; without a compiler the wheel is pure Python.

`scripts/package` compiles them before, for other processors too, and gives the library in WHEEL_LIBRARY and the
platform that the wheel is for in WHEEL_PLATFORM.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("edged", "engine", "kernels")


class KernelsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds one shared library to the wheel, which is then for this platform but for every Python version."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if self.target_name != "wheel":
            return
        given = os.environ.get("WHEEL_LIBRARY")
        library = Path(given) if given else self._compiled()
        if library is None or version == "editable":
            return
        platform = os.environ.get("WHEEL_PLATFORM") or _this_platform()
        build_data["force_include"][str(library)] = (KERNELS / library.name).as_posix()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def _compiled(self) -> Path | None:
        """The library beside its sources, compiled if it is not there; None where that is not possible."""
        path = Path(self.root) / KERNELS / "build.py"
        spec = importlib.util.spec_from_file_location("edged_kernels_build", path)
        if spec is None or spec.loader is None:
            return None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        output = path.with_name(f"_native-{module.fingerprint()}.so")
        try:
            return output if output.is_file() else module.build(output)
        except (module.BuildError, OSError) as error:
            print(f"edged: the native engine is left out: {error}", file=sys.stderr)
            return None


def _this_platform() -> str:
    from packaging.tags import sys_tags

    platforms = (tag.platform for tag in sys_tags())
    return next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))
