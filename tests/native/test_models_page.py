"""The page of models lists what the code runs."""

from __future__ import annotations

from edged.models.formats.families import FAMILIES as RECORDS
from edged.models.formats.families import HUB_TYPES
from tests.models_table import PAGE, PEOPLE
from tests.native.families import FAMILIES


def test_the_table_has_every_family() -> None:
    """Each record has a tiny model in the tests, each tiny model a line on the page, with every figure in its bounds:
    1e-3 for floats, and as computed by torch."""
    assert set(RECORDS) == {
        HUB_TYPES.get(name, {"gemma3": "gemma3", "hunyuan": "hunyuan-dense"}.get(name)) for name in PEOPLE
    }
    assert {family for family, _ in FAMILIES.values()} == set(PEOPLE)
    expected = [
        PEOPLE[family] + (f": {entry.partition(', ')[2] or entry}" if entry != family else "")
        for entry, (family, _) in FAMILIES.items()
    ]
    lines = [line.strip("|").split("|") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert expected == [line[0].strip() for line in lines]
    for line in lines:
        floats, *rounded, of_torch, _ = (float(figure) for figure in line[1:])
        assert floats <= 1e-3
        assert max(rounded) <= 5e-2
        assert of_torch <= 1e-5
