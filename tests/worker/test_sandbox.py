"""What a worker can no longer do once it reads a model: reach the network, other files, other processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.core.prompt import Regex, Request, Sampling
from edged.worker import frames, sandbox
from edged.worker.client import WorkerClient
from edged.worker.model_access import access_for
from tests.support import ROOT, SECONDS
from tests.tiny import make_checkpoint, make_gguf

# Runs in the worker's process, in the place where it begins to read the model; gives what each attempt came to.
PROBE = """
import json, os, socket, sys
import edged.worker.main as worker

def attempt(what, *arguments):
    try:
        result = what(*arguments)
    except OSError as error:
        return type(error).__name__
    return result if isinstance(result, (int, str)) else "done"

def read(path):
    with open(path, "rb") as file:
        return len(file.read(1))

def write(path):
    with open(path, "wb") as file:
        return file.write(b"x")

state, agent, load = sys.argv[1], int(sys.argv[2]), worker.load_model
results = {}

def probe(*arguments, **options):
    results.update({
        "journal": attempt(read, state + "/journal.db"),
        "write a layer": attempt(write, state + "/layers.json"),
        "list the state": attempt(os.listdir, state),
        "shadow": attempt(read, "/etc/shadow"),
        "write to the store": attempt(write, state + "/models/x"),
        "write to the packed models": attempt(write, state + "/models/packed/x"),
        "meminfo": attempt(read, "/proc/meminfo"),
        "internet": attempt(socket.socket, socket.AF_INET),
        "internet 6": attempt(socket.socket, socket.AF_INET6),
        "netlink": attempt(socket.socket, socket.AF_NETLINK),
        "unix": attempt(socket.socket, socket.AF_UNIX),
        "signal the agent": attempt(os.kill, agent, 0),
        "the agent's memory": attempt(read, f"/proc/{agent}/mem"),
        "the agent's variables": attempt(read, f"/proc/{agent}/environ"),
        "run a program": attempt(os.posix_spawn, "/bin/true", ["true"], {}),
    })
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    results["no new privileges"] = status["NoNewPrivs"].strip()
    results["filter"] = status["Seccomp"].strip()
    results["threads"] = status["Threads"].strip()
    print("PROBE" + json.dumps(results), file=sys.stderr, flush=True)
    return load(*arguments, **options)

worker.load_model = probe
sys.argv = ["worker", sys.argv[-1]]
worker.main()
"""


def landlock() -> int:
    try:
        return sandbox.landlock_version()
    except OSError as error:
        pytest.skip(f"Landlock cannot be used here: {error.strerror}")


class Probed:
    """A worker that loads a tiny model and says what it could do before."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], model: Path, backend: str = "native") -> None:
        self.state = folder / "state"
        (self.state / "models").mkdir(parents=True)
        (self.state / "journal.db").write_bytes(b"secret")
        self._posted: queue.Queue[object] = queue.Queue()
        command = (sys.executable, "-c", PROBE, str(self.state), str(os.getpid()))
        self.client = WorkerClient(1, lambda event: self._posted.put(event.event), command)
        self.client.start()
        self.client.send(frames.Load(str(model), None, "auto", backend, 64, 1, str(self.state / "models")))
        self.loaded = self.next(frames.Loaded, frames.NotLoaded)
        self.log = capfd.readouterr().err
        lines = [line.removeprefix("PROBE") for line in self.log.splitlines() if line.startswith("PROBE")]
        self.could: dict[str, Any] = json.loads(lines[0])

    def next(self, *kinds: type) -> Any:
        while not isinstance(event := self._posted.get(timeout=300 * SECONDS), kinds):
            pass
        return event

    def answer(self, request: Request) -> Any:
        self.client.send(frames.Add("a", request))
        return self.next(frames.Finished, frames.Refused)


@pytest.fixture
def probed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Probed]:
    model = make_gguf(tmp_path / "tiny.gguf")
    worker = Probed(tmp_path, capfd, model)
    yield worker
    worker.client.kill()
    worker.client.join(5)


def test_a_worker_has_no_network_and_no_new_privileges_and_answers(probed: Probed) -> None:
    sandbox._processor()
    sockets = [probed.could[kind] for kind in ("internet", "internet 6", "netlink", "unix")]
    assert ["PermissionError"] * 4 == sockets
    assert ("1", "2") == (probed.could["no new privileges"], probed.could["filter"])
    assert isinstance(probed.loaded, frames.Loaded)
    ended = probed.answer(Request(raw="hello", sampling=Sampling(max_tokens=4)))
    assert isinstance(ended, frames.Finished)
    assert "length" == ended.final.reason
    assert "worker: restricted: no new privileges, no network (seccomp)" in probed.log


def test_a_format_is_still_checked_in_a_process_of_its_own(probed: Probed) -> None:
    assert "yes" in probed.answer(Request(raw="hello", format=Regex("yes"))).final.text
    refused = probed.answer(Request(raw="hello", format=Regex("(")))
    assert isinstance(refused, frames.Refused)
    assert "invalid" == refused.reason


def test_a_worker_reads_no_files_but_the_models_and_pythons(probed: Probed) -> None:
    version = landlock()
    denied = ("journal", "write a layer", "list the state", "shadow", "write to the store", "run a program")
    assert dict.fromkeys(denied, "PermissionError") == {what: probed.could[what] for what in denied}
    assert (1, 1) == (probed.could["meminfo"], probed.could["write to the packed models"])
    assert probed.could["the agent's memory"] in ("PermissionError", "FileNotFoundError")
    if os.geteuid() != 0:  # root may still read those (CAP_PERFMON)
        assert "PermissionError" == probed.could["the agent's variables"]
    if version >= 6:
        assert "PermissionError" == probed.could["signal the agent"]
    assert "2" == probed.could["threads"]  # the reader was started after: there is none that Landlock does not hold
    assert f"only its own files (Landlock {version})" in probed.log
    assert "not restricted" not in probed.log


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_checkpoint_loads_in_the_sandbox(tmp_path: Path, capfd: pytest.CaptureFixture[str], backend: str) -> None:
    """transformers needs a temporary folder; the native engine packs the model first."""
    if backend == "torch":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    worker = Probed(tmp_path, capfd, make_checkpoint(tmp_path / "checkpoint"), backend)
    try:
        assert isinstance(worker.loaded, frames.Loaded), worker.loaded
        assert "length" == worker.answer(Request(raw="hello", sampling=Sampling(max_tokens=4))).final.reason
    finally:
        worker.client.kill()
        worker.client.join(5)


def test_links_of_a_hub_cache_are_followed_and_others_are_not(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "m" / "snapshots" / "1", tmp_path / "m" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("weights")
    (tmp_path / "secret").write_text("secret")
    (folder / "model.safetensors").symlink_to("../../../m/blobs/abc")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    readable = set(access_for(frames.Load(str(folder), None, "auto", "auto", 64, 1, str(tmp_path / "models"))).read)
    assert {folder, (blobs / "abc").resolve()} <= readable
    assert (tmp_path / "secret").resolve() not in readable


def test_all_files_of_a_split_model_are_within_reach(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for path in (*paths, tmp_path / "m-00001-of-00002.gguf", tmp_path / "other.gguf"):
        path.write_bytes(b"GGUF")
    order = frames.Load(str(paths[1]), None, "auto", "auto", 64, 1, str(tmp_path / "models"))
    readable = set(access_for(order).read)
    assert set(paths) == {path for path in readable if path.suffix == ".gguf"}


def test_a_source_above_the_store_is_not_opened(tmp_path: Path) -> None:
    """Else the journal would be in reach of the model's process."""
    for source in (str(tmp_path), "/", str(tmp_path / "models")):
        order = frames.Load(source, None, "auto", "auto", 64, 1, str(tmp_path / "models"))
        assert not {Path("/"), tmp_path} & set(access_for(order).read)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_what_a_kernel_does_not_have_is_reported_and_tolerated(number: int) -> None:
    """In a process of its own, where the kernel's answers are put in place of the real ones."""
    script = f"""
from edged.worker import sandbox
def fail(*_): raise OSError({number}, "no")
sandbox._syscall = fail
print(sandbox.available())
print(sandbox.restrict(sandbox.Access()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("restricted: no new privileges; not restricted: the network (")
    assert "not restricted: files (" in first


def test_an_unknown_processor_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert any("no filter for riscv64" in why for why in sandbox.available().missing)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_what_it_names_and_other_architectures(machine: str) -> None:
    """The program is run by hand, as the kernel runs it."""
    processor = sandbox._PROCESSORS[machine]
    program = [
        struct.unpack("HBBI", part) for part in _eights(sandbox.filter_program(processor.audit, processor.denied))
    ]
    allowed, denied = 0x7FFF0000, 0x00050000 | errno.EPERM
    assert allowed == _run(program, processor.audit, 0)
    assert allowed == _run(program, processor.audit, max(processor.denied) + 1)
    assert {denied} == {_run(program, processor.audit, number) for number in processor.denied}
    assert denied == _run(program, processor.audit, 0x40000000)
    assert denied == _run(program, 0x40000003, 0)  # i386
    others = set(range(470)) - set(processor.denied)
    assert {allowed} == {_run(program, processor.audit, number) for number in others}


def _eights(data: bytes) -> list[bytes]:
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def _run(program: list[tuple[int, ...]], audit: int, number: int) -> int:
    at, value = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            value = {0: number, 4: audit}[k]
        elif code == 0x06:
            return k
        else:
            at += yes if (value == k if code == 0x15 else value >= k) else no


def test_the_first_frame_can_be_looked_at_and_is_still_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        order = frames.Load("m", None, "auto", "auto", 64, 1, "/s")
        ours.sendall(frames.encode(order) + frames.encode(frames.Ping()))
        assert order == frames.peek(theirs)
        assert [order, frames.Ping()] == frames.Decoder[frames.ToWorker](frames.ToWorker).feed(theirs.recv(1000))
        ours.close()
        assert frames.peek(theirs) is None
        with contextlib.suppress(OSError):
            theirs.close()
