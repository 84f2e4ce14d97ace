"""The agent's end of a worker, with small scripts as the process at the other end."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.worker import client as worker_client
from edged.worker import frames
from edged.worker.client import Exited, WorkerClient, WorkerEvent
from tests.support import SECONDS

Posted = queue.Queue[WorkerEvent]
PREFACE = """
import os, signal, socket, struct, sys, time
channel = socket.socket(fileno=int(sys.argv[-1]))
def say(body): channel.sendall(struct.pack('>I', len(body)) + body)
def packed(**fields):
    import msgspec
    return msgspec.msgpack.encode(fields)
"""


@pytest.fixture
def posted() -> Posted:
    return queue.Queue()


@pytest.fixture
def start(posted: Posted, tmp_path: Path) -> Iterator[Callable[[str], WorkerClient]]:
    """Starts a client whose process runs the given lines."""
    made: list[WorkerClient] = []

    def begin(script: str) -> WorkerClient:
        path = tmp_path / "worker.py"
        path.write_text(PREFACE + script)
        client = WorkerClient(7, posted.put, (sys.executable, str(path)))
        client.start()
        made.append(client)
        return client

    yield begin
    for client in made:
        client.kill()
        client.join(5)


def next_event(posted: Posted) -> object:
    posted_event = posted.get(timeout=20 * SECONDS)
    assert posted_event.generation == 7
    return posted_event.event


def test_frames_are_posted_and_then_the_end(start: Callable[[str], WorkerClient], posted: Posted) -> None:
    start("say(packed(type='started', key='1')); sys.exit(3)")
    assert next_event(posted) == frames.Started("1")
    exited = next_event(posted)
    assert exited == Exited(3)
    assert isinstance(exited, Exited)
    assert exited.how == "ended with exit code 3"


def test_a_killed_process_is_told_by_its_signal(start: Callable[[str], WorkerClient], posted: Posted) -> None:
    start("os.kill(os.getpid(), signal.SIGSEGV)")
    exited = next_event(posted)
    assert isinstance(exited, Exited)
    assert exited.how == "was killed by SIGSEGV"


def test_what_the_worker_gets_it_can_read(start: Callable[[str], WorkerClient], posted: Posted) -> None:
    client = start("channel.recv(4, socket.MSG_WAITALL); say(packed(type='progress')); time.sleep(60)")
    client.send(frames.Ping())
    assert next_event(posted) == frames.Progress()


def test_p11_a_worker_that_speaks_nonsense_is_ended(start: Callable[[str], WorkerClient], posted: Posted) -> None:
    start("say(b'nonsense'); time.sleep(60)")
    assert next_event(posted) == Exited(-9)


def test_a_worker_that_closes_its_socket_but_stays_is_ended(
    start: Callable[[str], WorkerClient], posted: Posted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "_EXIT_DEADLINE", 0.2)
    start("channel.close(); time.sleep(60)")
    assert next_event(posted) == Exited(-9)


def test_a_worker_that_takes_no_bytes_is_ended(
    start: Callable[[str], WorkerClient], posted: Posted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "_SEND_TIMEOUT", 1)
    client = start("time.sleep(60)")
    while posted.empty():
        client.send(frames.Loading("x" * 500_000))  # type: ignore[arg-type]
    assert next_event(posted) == Exited(-9)


def test_sending_to_a_process_that_is_gone_raises_nothing(start: Callable[[str], WorkerClient], posted: Posted) -> None:
    client = start("sys.exit(0)")
    assert next_event(posted) == Exited(0)
    client.send(frames.Ping())
    client.kill()


def test_the_worker_does_not_inherit_our_variables(
    start: Callable[[str], WorkerClient], posted: Posted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither secrets of the config nor systemd's socket."""
    monkeypatch.setenv("EDGED_MQTT_URL", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "x")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    start("say(packed(type='loading', doing=str([k for k in os.environ if k[:5] in ('EDGED', 'NOTIF', 'WATCH')])))")
    assert next_event(posted) == frames.Loading("[]")


def test_a_command_that_is_not_there_cannot_be_started() -> None:
    with pytest.raises(OSError, match="No such file"):
        WorkerClient(1, lambda _event: None, ("/nowhere/worker",)).start()
