"""A short run of each attack; `scripts/attack` has the long one."""

from __future__ import annotations

import pytest

from tests.attack.__main__ import ATTACKS, run

pytestmark = pytest.mark.mosquitto


@pytest.mark.parametrize("name", ATTACKS)
def test_the_daemon_withstands(name: str) -> None:
    checks = run([name], seed=1, seconds=3)
    assert [] == [f"{check.must}: {check.seen}" for check in checks if not check.held]
    assert checks
