"""Compiles the native engine's kernels while a wheel is built; without a compiler the wheel is pure Python."""

from __future__ import annotations

import importlib.util
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
        path = Path(self.root) / KERNELS / "build.py"
        spec = importlib.util.spec_from_file_location("edged_kernels_build", path)
        if spec is None or spec.loader is None:
            return
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        output = path.with_name(f"_native-{module.fingerprint()}.so")
        try:
            if not output.is_file():
                module.build(output)
        except (module.BuildError, OSError) as error:
            print(f"edged: the native engine is left out: {error}", file=sys.stderr)
            return
        if version == "editable":
            return
        from packaging.tags import sys_tags

        platforms = (tag.platform for tag in sys_tags())
        platform = next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))
        build_data["artifacts"].append(f"/{KERNELS.as_posix()}/{output.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
