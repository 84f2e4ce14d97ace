"""The native tests need the compiled kernels; where no compiler can make them they are skipped, with the reason."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import load_library

HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def kernels_missing() -> str | None:
    """Why there are no kernels here; None where there are some."""
    try:
        load_library()
    except BuildError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what lies beside this file without a library."""
    if kernels_missing() is None:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"no kernels: {kernels_missing()}"))
