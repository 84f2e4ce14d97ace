"""What is a trial and what is applied in place."""

from __future__ import annotations

import pytest

from edged.config.schema import build, show
from edged.fleet.plan import needs_trial, plan

CURRENT = build({"model": {"source": "gemma", "keep_alive": 60.0}})


@pytest.mark.parametrize("keep_alive", [None, 0.0, 600.0])
def test_a_change_of_keep_alive_alone_is_no_trial(keep_alive: float | None) -> None:
    target = build({"model": {"source": "gemma", "keep_alive": keep_alive}, "models": {"keep": 5}})
    assert not needs_trial(CURRENT, target)
    assert ["apply in place: model.keep_alive, models"] == [step.what for step in plan(CURRENT, target)]


def test_a_change_of_keep_alive_beside_another_of_the_model_is_part_of_the_trial() -> None:
    target = build({"model": {"source": "gemma", "keep_alive": 0.0, "context": 64}})
    assert ["load", "judge", "probation", "adopt"] == [step.name for step in plan(CURRENT, target)]


@pytest.mark.parametrize(("keep_alive", "shown"), [(None, "forever"), (0.0, "0s"), (600.0, "10m")])
def test_keep_alive_is_shown_as_it_is_written(keep_alive: float | None, shown: str) -> None:
    assert shown == show(build({"model": {"keep_alive": keep_alive}}))["model"]["keep_alive"]
