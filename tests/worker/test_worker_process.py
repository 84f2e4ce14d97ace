"""The real worker's process, without a model: it says why it has none, and never outlives its agent."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Regex, Request
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
    """Takes prompts in; always has work."""

    busy = True

    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, key: str, request: Request) -> None:
        self.added.append(key)


def test_formats_are_checked_one_between_two_steps() -> None:
    """Checking one takes a while: running replies go on in between, and the agent gets frames."""
    ours, theirs = socket.socketpair()
    worker, engine = Worker(theirs), _Engine()
    worker._model = SimpleNamespace(engine=engine)  # type: ignore[assignment]
    for number in range(3):
        worker._inbox.put(frames.Add(f"f{number}", Request(raw="x", format=Regex("a"))))
    worker._inbox.put(frames.Add("plain", Request(raw="x")))
    worker._inbox.put(frames.Add("plain too", Request(raw="x")))
    seen = []
    while not worker._inbox.empty():
        worker._process_frames()
        seen.append(list(engine.added))
    assert seen[:3] == [["f0"], ["f0", "f1"], ["f0", "f1", "f2"]]
    assert seen[3][3:] == ["plain", "plain too"]
    names = ("f0", "f1", "f2", "plain", "plain too")
    assert said(ours) == [frame for name in names for frame in (frames.Preparing(name), frames.Prepared(name))]
    ours.close()
    theirs.close()


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

    def add(key: str, _request: Request) -> None:
        named.append(said(ours))
        raise error

    worker._model = SimpleNamespace(engine=SimpleNamespace(add=add))  # type: ignore[assignment]
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
