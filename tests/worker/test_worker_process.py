"""The real worker's process, without a model: it says why it has none, and never outlives its agent."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Choice, Format, Regex, Request
from edged.worker import frames
from edged.worker.client import Exited, WorkerClient
from edged.worker.main import Worker
from tests.support import ROOT, SECONDS, wait_until

AGENT = """
import sys, time
from edged.worker.client import WorkerClient
client = WorkerClient(1, lambda e: print(type(e.event).__name__, client.pid, flush=True))
client.start()
from edged.worker import frames
client.send(frames.Load({model!r}, None, "auto", "auto", 64, 1, "/nowhere"))
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Whether a process that is not our child has ended (a zombie that nobody reaps has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_model_that_is_not_there_is_reported_and_prompts_are_refused(tmp_path: Path) -> None:
    posted: queue.Queue[object] = queue.Queue()
    client = WorkerClient(1, lambda event: posted.put(event.event))
    client.start()
    try:
        client.send(frames.Load(str(tmp_path / "no.gguf"), None, "auto", "auto", 64, 1, str(tmp_path)))
        answers = [posted.get(timeout=60 * SECONDS)]
        while isinstance(answers[-1], frames.Loading):
            answers.append(posted.get(timeout=60 * SECONDS))
        refusal = answers[-1]
        assert isinstance(refusal, frames.NotLoaded)
        assert refusal.code == "missing"
        client.send(frames.Ping())
        assert posted.get(timeout=60 * SECONDS) == frames.Progress()
    finally:
        client.kill()
    assert posted.get(timeout=10 * SECONDS) == Exited(-signal.SIGKILL)


def test_the_worker_ends_within_five_seconds_of_losing_its_agent(tmp_path: Path) -> None:
    script = AGENT.format(model=str(tmp_path / "no.gguf"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as agent:
        assert agent.stdout is not None
        line = agent.stdout.readline().split()
        while line[0] == b"Loading":
            line = agent.stdout.readline().split()
        pid = int(line[1])
        assert not gone(pid)
        agent.send_signal(signal.SIGKILL)
        wait_until(lambda: gone(pid), 5, "the worker is gone")


class _Engine:
    """Takes prompts in and is never busy; a check of a format ends when the test says so."""

    busy = False

    def __init__(self) -> None:
        self.added: list[tuple[str, int]] = []
        self.levels: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.begun: queue.Queue[str] = queue.Queue()
        self.go = threading.Semaphore(0)

    def wanted(self, request: Request) -> Format | None:
        return request.format

    def is_checked(self, wanted: Format) -> bool:
        return isinstance(wanted, Choice)

    def check_format(self, wanted: Format) -> None:
        assert isinstance(wanted, Regex)
        self.begun.put(wanted.pattern)
        assert self.go.acquire(timeout=10)
        if wanted.pattern == "bad":
            raise PromptRefused("invalid", "format", "it is bad")

    def add(self, key: str, request: Request, level: int) -> None:
        self.added.append((key, level))

    def set_level(self, key: str, level: int) -> None:
        self.levels.append((key, level))

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)

    def interrupt(self) -> None:
        """Nothing runs."""


class _Bench:
    """A worker with that engine; the test plays its loop."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.worker, self.engine = Worker(self.theirs), _Engine()
        self.worker._model = SimpleNamespace(engine=self.engine)  # type: ignore[assignment]

    def add(self, key: str, pattern: str = "", level: int = 5) -> None:
        wanted = Regex(pattern) if pattern else None
        self.worker._process(frames.Add(key, Request(raw="x", format=wanted), "me", level))

    def finish_check(self) -> None:
        """Lets the present check end, and processes what the checking thread posted."""
        self.engine.go.release()
        self.worker._process(self.worker._inbox.get(timeout=10))

    def close(self) -> None:
        self.worker._checks.stop()
        for _ in range(10):
            self.engine.go.release()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def bench() -> Iterator[_Bench]:
    made = _Bench()
    yield made
    made.close()


def test_a_new_format_is_checked_beside_the_loop(bench: _Bench) -> None:
    """Prompts without one, or whose format needs no check, are added meanwhile."""
    bench.add("checked", "good")
    assert "good" == bench.engine.begun.get(timeout=10)
    bench.add("plain", level=7)
    bench.worker._process(frames.Add("choice", Request(raw="x", format=Choice(("a",))), "me", 5))
    assert [("plain", 7), ("choice", 5)] == bench.engine.added
    bench.finish_check()
    assert [("plain", 7), ("choice", 5), ("checked", 5)] == bench.engine.added
    names = ("plain", "choice", "checked")
    assert [frame for name in names for frame in (frames.Preparing(name), frames.Prepared(name))] == said(bench.ours)


def test_a_format_that_cannot_be_used_is_refused(bench: _Bench) -> None:
    bench.add("a", "bad")
    bench.finish_check()
    assert [] == bench.engine.added
    assert [frames.Refused("a", "invalid", "format", "it is bad")] == said(bench.ours)


def test_a_prompt_may_be_cancelled_while_its_format_waits_or_is_checked(bench: _Bench) -> None:
    bench.add("a", "one")
    bench.add("b", "two")
    assert "one" == bench.engine.begun.get(timeout=10)
    for key in ("a", "b"):
        bench.worker._process(frames.Cancel(key))
    bench.finish_check()
    assert ([], []) == (bench.engine.added, bench.engine.cancelled)
    ended = said(bench.ours)
    assert [("a", "cancelled"), ("b", "cancelled")] == [(frame.key, frame.final.reason) for frame in ended]
    bench.worker._process(frames.Cancel("c"))
    assert ["c"] == bench.engine.cancelled


def test_a_level_may_change_while_a_format_waits(bench: _Bench) -> None:
    bench.add("first", "zero")
    assert "zero" == bench.engine.begun.get(timeout=10)
    bench.add("a", "one")
    bench.add("b", "two")
    bench.worker._process(frames.SetLevel("b", 1))
    bench.worker._process(frames.SetLevel("elsewhere", 2))
    for _ in range(3):
        bench.finish_check()
    assert [("first", 5), ("b", 1), ("a", 5)] == bench.engine.added
    assert [("elsewhere", 2)] == bench.engine.levels


def said(ours: socket.socket) -> list[frames.FromWorker]:
    decoder: frames.Decoder[frames.FromWorker] = frames.Decoder(frames.FromWorker)
    return decoder.feed(ours.recv(65536))


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [(MemoryError(), "failed", "no_memory"), (PromptRefused("too_long", "too_long", "m"), "too_long", "too_long")],
)
def test_p11_what_is_being_prepared_is_named_before(error: Exception, reason: str, code: str) -> None:
    """If that ends the process it is known whose it was; what merely cannot be prepared is refused."""
    ours, theirs = socket.socketpair()
    worker, named = Worker(theirs), []

    def add(key: str, _request: Request, _level: int) -> None:
        named.append(said(ours))
        raise error

    worker._model = SimpleNamespace(engine=SimpleNamespace(add=add, wanted=lambda _: None))  # type: ignore[assignment]
    worker._process(frames.Add("a", Request(raw="x")))
    assert named == [[frames.Preparing("a")]]
    (refused,) = said(ours)
    assert isinstance(refused, frames.Refused)
    assert (refused.key, refused.reason, refused.code) == ("a", reason, code)
    ours.close()
    theirs.close()


def test_what_arrives_interrupts_the_step_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it lies in the inbox, so that it is found by who looks there next."""
    ours, theirs = socket.socketpair()
    worker, lengths = Worker(theirs), queue.Queue[int]()
    engine = SimpleNamespace(interrupt=lambda: lengths.put(worker._inbox.qsize()))
    worker._model = SimpleNamespace(engine=engine)  # type: ignore[assignment]
    monkeypatch.setattr("edged.worker.main.os._exit", lambda _: None)  # how a reader ends that has lost its agent
    reader = threading.Thread(target=worker._read)
    reader.start()
    for count in (1, 2):
        ours.sendall(frames.encode(frames.Cancel("a")))
        assert lengths.get(timeout=SECONDS) == count
    ours.close()
    reader.join(SECONDS)
    assert not reader.is_alive()
    theirs.close()
