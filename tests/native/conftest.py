"""The native tests need the compiled kernels; where no compiler can make them they are skipped, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import load_library

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what lies beside this file without a library."""
    try:
        load_library()
    except BuildError as error:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"no kernels: {error}"))
