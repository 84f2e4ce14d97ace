"""The C++ sources can be read side by side on one screen."""

from __future__ import annotations

from pathlib import Path

from edged.engine.kernels.build import HERE

COLUMNS = 110


def test_lines_of_cpp_are_at_most_110_columns() -> None:
    own = Path(__file__).parent
    sources = [path for folder in (HERE, own) for pattern in ("**/*.h", "**/*.cpp") for path in folder.glob(pattern)]
    long = [
        f"{path.name}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS
    ]
    assert len(sources) > 30
    assert [] == long
