"""Nothing in the state folder keeps a device from starting, nor gives it what was never written (20,000 by hand)."""

from __future__ import annotations

from tests.damage.sweep import sweep


def test_p02_damaged_files_always_open_and_never_give_a_wrong_row() -> None:
    result = sweep(300, seed=21)
    assert result.failures == []
    assert result.recovered > 100
    assert result.carried > 0.85 * result.possible
