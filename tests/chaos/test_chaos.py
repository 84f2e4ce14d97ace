"""A short run of `scripts/chaos`, and that its oracle finds what it is there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.oracle import Oracle
from tests.chaos.run import Chaos
from tests.support import ROOT


def seen(oracle: Oracle, **document: Any) -> None:
    oracle.seen(document, json.dumps(document).encode())


@pytest.fixture
def oracle() -> Oracle:
    made = Oracle()
    made.sent("a", "x y")
    seen(made, id="a", accepted=True)
    return made


def test_one_final_that_may_come_twice_is_right(oracle: Oracle) -> None:
    for _ in range(2):
        seen(oracle, id="a", final=True, reason="stop", text="x y ")
    assert ([], [], [], {}) == (oracle.lost, oracle.doubled, oracle.wrong, oracle.open)


def test_no_final_is_lost(oracle: Oracle) -> None:
    seen(oracle, id="a", final=True, reason="busy")
    assert ["a"] == oracle.lost


def test_a_second_acceptance_means_that_the_first_was_forgotten(oracle: Oracle) -> None:
    seen(oracle, id="a", accepted=True)
    seen(oracle, id="a", final=True, reason="stop", text="x y")
    assert ["a"] == oracle.lost


def test_a_freed_id_may_be_accepted_again(oracle: Oracle) -> None:
    seen(oracle, id="a", final=True, reason="unavailable")
    seen(oracle, id="a", accepted=True)
    seen(oracle, id="a", final=True, reason="stop", text="x y")
    assert [] == oracle.lost


def test_two_finals_that_differ_are_doubled(oracle: Oracle) -> None:
    for ts in (1, 2):
        seen(oracle, id="a", final=True, reason="stop", text="x y", ts=ts)
    assert ["a"] == oracle.doubled


def test_the_answer_to_another_prompt_is_wrong(oracle: Oracle) -> None:
    seen(oracle, id="a", final=True, reason="stop", text="z")
    assert ["a"] == oracle.wrong


@pytest.mark.mosquitto
@pytest.mark.broker
def test_p01_p02_p03_nothing_is_lost_or_doubled_in_a_short_run(tmp_path: Path) -> None:
    result = Chaos(tmp_path, seed=2, seconds=6).run()
    assert (0, 0, 0, []) == tuple(result[name] for name in ("lost", "doubled", "wrong", "examples")), result
    assert int(str(result["prompts"])) > 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_safety_line_that_is_removed_is_in_the_source_once(mutant: Mutant) -> None:
    assert 1 == (ROOT / mutant.path).read_text("utf-8").count(mutant.old)
