"""A board of files for the tests of the package device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.device.boards import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files below a folder of its own and gives that folder."""
    root = tmp_path / "root"

    def write(files: Mapping[str, str | bytes]) -> Path:
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return write
