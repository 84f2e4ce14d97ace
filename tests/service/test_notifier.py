"""What systemd receives, on a real datagram socket as sd_notify(3) describes it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.agent.systemd import STALLED_AFTER, Notifier

WATCHDOG_SECONDS = 60
FINE = {"link": 0.0, "telemetry": 1.0}


class Systemd:
    """systemd's end: everything that came since one last asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def received(self) -> list[str]:
        words = []
        while True:
            try:
                words.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return words

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000)}


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(str(tmp_path / "notify") if request.param == "file" else f"@edged-test-{os.getpid()}")
    yield made
    made.socket.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_ready_and_stopping(systemd: Systemd, clock: Clock) -> None:
    notifier = Notifier(systemd.environment, clock)
    assert [] == systemd.received()
    notifier.ready()
    notifier.stopping()
    assert ["READY=1", "STOPPING=1"] == systemd.received()


def test_a_status_is_sent_once(systemd: Systemd, clock: Clock) -> None:
    notifier = Notifier(systemd.environment, clock)
    for words in ("model starting", "model starting", "model online"):
        notifier.status(words)
    assert ["STATUS=model starting", "STATUS=model online"] == systemd.received()


def test_a_status_is_one_line_whatever_a_broker_says(systemd: Systemd, clock: Clock) -> None:
    """A second line would be an order to systemd of its own."""
    Notifier(systemd.environment, clock).status("refused: go away\nMAINPID=1\r\n\tnow \ud800")
    assert ["STATUS=refused: go away MAINPID=1 now ?"] == systemd.received()


def test_p10_kept_alive_while_every_loop_progresses(systemd: Systemd, clock: Clock) -> None:
    notifier = Notifier(systemd.environment, clock)
    received = []
    for _ in range(10 * WATCHDOG_SECONDS):
        clock.now += 1
        assert notifier.keep_alive(FINE) is None
        received += systemd.received()
    assert {"WATCHDOG=1"} == set(received)
    assert 10 * 2 <= len(received) <= 10 * 6  # at least twice in each of its periods, and no storm


@pytest.mark.parametrize("loop", sorted(FINE))
def test_p10_a_loop_that_stalls_is_named_and_stops_the_keep_alive(systemd: Systemd, clock: Clock, loop: str) -> None:
    notifier = Notifier(systemd.environment, clock)
    clock.now += WATCHDOG_SECONDS
    assert loop == notifier.keep_alive({**FINE, loop: STALLED_AFTER + 1})
    assert [] == systemd.received()
    assert notifier.keep_alive({**FINE, loop: STALLED_AFTER - 1}) is None
    assert ["WATCHDOG=1"] == systemd.received()


def test_p10_nothing_but_the_loop_keeps_alive(systemd: Systemd) -> None:
    """No timer: a main loop that hangs is silent."""
    Notifier({**systemd.environment, "WATCHDOG_USEC": "40000"}, time.monotonic)
    time.sleep(0.1)
    assert [] == systemd.received()


@pytest.mark.parametrize("microseconds", [None, "", "no number"])
def test_without_a_watchdog_no_keep_alive_is_sent(systemd: Systemd, clock: Clock, microseconds: str | None) -> None:
    environment = {k: v for k, v in systemd.environment.items() if k != "WATCHDOG_USEC"}
    notifier = Notifier(environment | ({} if microseconds is None else {"WATCHDOG_USEC": microseconds}), clock)
    clock.now += 1000
    assert notifier.keep_alive(FINE) is None
    assert [] == systemd.received()


def test_without_systemd_nothing_happens(clock: Clock) -> None:
    notifier = Notifier({}, clock)
    notifier.ready()
    notifier.status("model online")
    clock.now += 1000
    assert notifier.keep_alive(FINE) is None


def test_a_systemd_that_is_away_gets_the_next_message_when_it_is_back(tmp_path: Path, clock: Clock) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": address}, clock)
    notifier.ready()
    systemd = Systemd(address)
    notifier.stopping()
    assert ["STOPPING=1"] == systemd.received()
    systemd.socket.close()


def test_a_systemd_that_does_not_read_delays_only_a_little(tmp_path: Path, clock: Clock) -> None:
    """Its queue is short; the loop must not stand still for good when it is full."""
    silent = Systemd(str(tmp_path / "notify"))
    notifier = Notifier(silent.environment, clock)
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text(encoding="ascii"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as filler:
        try:
            for _ in range(queue + 2):
                filler.sendto(b"x", silent.address)
        except BlockingIOError:
            pass
    began = time.monotonic()
    notifier.ready()
    assert time.monotonic() - began < 5
    silent.socket.close()
