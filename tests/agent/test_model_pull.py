"""Fetching a model: the process is ended whatever it does with signals, and its error is passed on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from edged.agent import model_pull
from edged.agent.model_pull import ModelPull, PullEnded
from edged.agent.model_state import ModelFailure

IGNORES_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stderr.write("ready\\n")
sys.stderr.flush()
time.sleep(600)
"""


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A pull that ignores SIGTERM, as one that waits for a dead disk does."""
    process = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    yield process
    process.kill()
    process.wait(10)


def test_a_pull_that_ignores_sigterm_is_killed(
    stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon still publishes `offline`, disconnects and closes its journal."""
    monkeypatch.setattr(model_pull, "_TERMINATE_WITHIN", 0.2)
    pull = ModelPull("m", (), lambda _event: None)
    pull._process = stubborn
    pull.stop()
    assert -9 == stubborn.wait(10)


def test_a_stop_without_a_pull_does_nothing() -> None:
    ModelPull("m", (), lambda _event: None).stop()


def test_only_the_newest_pull_counts() -> None:
    pull = ModelPull("m", (), lambda _event: None)
    pull._attempt = 2
    assert not pull.ended(PullEnded(1, None))
    assert pull.ended(PullEnded(2, ModelFailure("unreachable", "m")))
