"""The page of models lists what the code runs."""

from __future__ import annotations

import pytest

from edged.models.formats.families import FAMILIES as RECORDS
from edged.models.formats.families import HUB_TYPES
from edged.models.packing.gguf_source import QUANTIZED
from tests.models_table import PAGE, PEOPLE, TABLES, name_of, page_figures, written
from tests.native.families import FAMILIES

# The largest difference that a column may have: floats to 1e-3, other types as far as activations of 8 bits go.
BOUNDS = {"floats": 1e-3, "GGUF": 1e-5, "8 bits": 1e-1, **dict.fromkeys(QUANTIZED, 5e-2)}


def test_every_family_has_a_tiny_model() -> None:
    assert set(RECORDS) == {
        HUB_TYPES.get(name, {"gemma3": "gemma3", "hunyuan": "hunyuan-dense"}.get(name)) for name in PEOPLE
    }
    assert {family for family, _ in FAMILIES.values()} == set(PEOPLE)


def bound_of(name: str, column: str) -> float:
    """Rounding decides which of two nearly equal experts computes a token: twice as much is allowed there."""
    return BOUNDS[column] * (2 if column in QUANTIZED and "mixture of experts" in name else 1)


def test_the_page_has_every_family_and_type() -> None:
    """Each tiny model has a line in each table, each type that runs natively a column, each figure in its bounds."""
    tables = page_figures(PAGE.read_text("utf-8"))
    assert [list(columns) for _, columns in TABLES] == [columns for columns, _ in tables]
    assert sorted(BOUNDS) == sorted(column for columns, _ in tables for column in columns)
    for columns, lines in tables:
        assert [name_of(entry) for entry in FAMILIES] == list(lines)
        for name, figures in lines.items():
            beyond = [
                (name, column, figure)
                for column, figure in zip(columns, figures, strict=True)
                if not float(figure.replace("–", "0")) <= bound_of(name, column)
            ]
            assert [] == beyond


def test_measuring_one_family_keeps_the_lines_of_others() -> None:
    """And the page is as its generator writes it."""
    page = PAGE.read_text("utf-8")
    assert page == written(page, {})
    changed = page_figures(written(page, {"qwen3": dict.fromkeys(BOUNDS, 0.002)}))
    for (columns, before), (_, after) in zip(page_figures(page), changed, strict=True):
        assert after[name_of("qwen3")] == ["2e-3"] * len(columns)
        assert [name for name in before if before[name] != after[name]] == [name_of("qwen3")]


@pytest.mark.parametrize("entry", FAMILIES)
def test_names_on_the_page_are_unique(entry: str) -> None:
    assert [entry] == [other for other in FAMILIES if name_of(other) == name_of(entry)]
