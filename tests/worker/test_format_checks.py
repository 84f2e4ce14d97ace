"""Checks of formats beside the loop: the most urgent first, and fair among requesters."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Format, Regex
from edged.worker.format_checks import REMEMBERED, FormatChecks

WITHIN = 5.0


class Bench:
    """Checks that begin and end when the test says so; a check takes as many seconds as its pattern has characters."""

    def __init__(self) -> None:
        self.now = 0.0
        self.begun: queue.Queue[str] = queue.Queue()
        self.go = threading.Semaphore(0)
        self.ended: queue.Queue[tuple[str, PromptRefused | None]] = queue.Queue()
        self.checks = FormatChecks(self.check, lambda *what: self.ended.put(what), lambda: self.now)

    def check(self, wanted: Format) -> None:
        assert isinstance(wanted, Regex)
        self.begun.put(wanted.pattern)
        assert self.go.acquire(timeout=WITHIN)
        self.now += len(wanted.pattern)
        if wanted.pattern.startswith("bad"):
            raise PromptRefused("invalid", "format", "it is bad")
        if wanted.pattern.startswith("crash"):
            raise RuntimeError("a defect")

    def submit(self, key: str, requester: str = "me", level: int = 5, pattern: str = "") -> None:
        self.checks.submit(key, requester, level, Regex(pattern or key))

    def finish(self) -> tuple[str, PromptRefused | None]:
        self.go.release()
        return self.ended.get(timeout=WITHIN)

    def order(self, count: int) -> list[str]:
        return [self.finish()[0] for _ in range(count)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.checks.stop()
    for _ in range(10):
        made.go.release()


def hold(bench: Bench) -> None:
    """Keeps the thread busy with one check, so that what follows waits."""
    bench.submit("first", requester="nobody")
    assert "first" == bench.begun.get(timeout=WITHIN)


def test_the_most_urgent_is_checked_first_and_of_the_same_the_oldest(bench: Bench) -> None:
    hold(bench)
    for key, level in (("a", 5), ("b", 0), ("c", 5), ("d", 9)):
        bench.submit(key, level=level)
    assert ["first", "b", "a", "c", "d"] == bench.order(5)


def test_a_requester_of_long_checks_waits_behind_another(bench: Bench) -> None:
    hold(bench)
    for key in ("x1", "x2", "x3"):
        bench.submit(key, requester="bombs", pattern=f"{key}{'x' * 60}")
    assert ["first", "x1"] == bench.order(2)
    assert "x1" == bench.begun.get(timeout=WITHIN)[:2]
    assert "x2" == bench.begun.get(timeout=WITHIN)[:2]  # has begun already
    bench.submit("mine")
    assert ["x2", "mine", "x3"] == bench.order(3)


def test_a_level_may_change_while_it_waits(bench: Bench) -> None:
    hold(bench)
    for key in ("a", "b"):
        bench.submit(key)
    bench.checks.set_level("b", 1)
    bench.checks.set_level("gone", 1)
    assert ["first", "b", "a"] == bench.order(3)


def test_what_was_withdrawn_is_not_checked(bench: Bench) -> None:
    hold(bench)
    for key in ("a", "b"):
        bench.submit(key)
    assert bench.checks.withdraw("a")
    assert not bench.checks.withdraw("a")
    assert not bench.checks.withdraw("first")  # its check has begun: `done` follows
    assert ["first", "b"] == bench.order(2)


def test_a_refusal_and_a_defect_are_answers_and_the_next_is_checked(bench: Bench) -> None:
    bench.submit("bad")
    key, refusal = bench.finish()
    assert ("bad", "it is bad") == (key, str(refusal))
    bench.submit("crash")
    key, refusal = bench.finish()
    assert refusal is not None
    assert ("crash", "failed") == (key, refusal.reason)
    bench.submit("good")
    assert ("good", None) == bench.finish()


def test_names_are_forgotten() -> None:
    checks = FormatChecks(lambda _: None, lambda *_: None)
    for number in range(2 * REMEMBERED):
        checks._charge(f"r{number}", 1.0)
    assert REMEMBERED == len(checks._seconds)
