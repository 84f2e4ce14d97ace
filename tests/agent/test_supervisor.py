"""The supervisor with a clock that tests set and workers that only record: restarts, hangs, fetching, safe."""

from __future__ import annotations

import signal
import subprocess
from typing import Any, ClassVar

import msgspec
import pytest

from edged.agent import model_pull
from edged.agent import supervisor as module
from edged.agent.last_good import LastGood
from edged.agent.model_pull import PullEnded
from edged.agent.model_state import (
    ModelFailure,
    ModelReady,
    Outcome,
    PromptProgress,
    WorkerLost,
)
from edged.agent.supervisor import Supervisor
from edged.core.prompt import Final, ModelInfo, Usage
from edged.worker import frames
from edged.worker.client import Exited, WorkerEvent

ORDER = frames.Load("smollm2-135m-instruct", None, "auto", "auto", 64, None, "/store")
INFO = ModelInfo("m", "sha256:0", "llama", "q4_1", "torch", 64, 4, 100)
KILLED = Exited(-signal.SIGKILL)


class RecordingClient:
    """A worker's process in name only. `startable` False: it cannot be started."""

    startable = True
    made: ClassVar[list[RecordingClient]] = []

    def __init__(self, generation: int, _post: Any, _command: Any = None) -> None:
        self.generation = generation
        self.sent: list[frames.ToWorker] = []
        self.kills = 0
        self.pid = 1000 + generation

    def start(self) -> None:
        if not RecordingClient.startable:
            raise OSError(2, "No such file or directory")
        RecordingClient.made.append(self)

    def send(self, frame: frames.ToWorker) -> None:
        self.sent.append(frame)

    def kill(self) -> None:
        self.kills += 1

    def join(self, _timeout: float) -> None:
        return


class Bench:
    """A supervisor, what it returned, and its mailbox."""

    def __init__(self, order: frames.Load = ORDER) -> None:
        self.now = 0.0
        self.outcomes: list[Outcome] = []
        self.posted: list[object] = []
        self.supervisor = Supervisor(order, (), self.posted.append, lambda: self.now)
        self.outcomes += self.supervisor.start()

    @property
    def loads(self) -> int:
        return sum(isinstance(outcome, ModelReady) for outcome in self.outcomes)

    @property
    def lost(self) -> list[str]:
        return [outcome.how for outcome in self.outcomes if isinstance(outcome, WorkerLost)]

    @property
    def frames(self) -> list[frames.AboutPrompt]:
        return [outcome.frame for outcome in self.outcomes if isinstance(outcome, PromptProgress)]

    @property
    def worker(self) -> RecordingClient:
        """The newest process."""
        return RecordingClient.made[-1]

    def says(self, event: frames.FromWorker | Exited) -> None:
        self.process(self.worker.generation, event)

    def process(self, generation: int, event: frames.FromWorker | Exited) -> None:
        self.outcomes += self.supervisor.process_worker(WorkerEvent(generation, event))

    def pulled(self, attempt: int, failure: ModelFailure | None = None) -> None:
        self.outcomes += self.supervisor.process_pull(PullEnded(attempt, failure))

    def wait(self, seconds: float) -> None:
        """Time passes; the supervisor looks up whenever it asked to."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, max(self.supervisor.next_tick(), self.now + 0.001))
            self.outcomes += self.supervisor.tick()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "WorkerClient", RecordingClient)
    RecordingClient.made = []
    RecordingClient.startable = True
    return Bench()


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands with which fetching was started."""
    started: list[list[str]] = []

    class Fetching:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)
            self.returncode = 0

        def communicate(self) -> tuple[bytes, None]:
            return b"", None

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Fetching)
    return started


# ---- loading --------------------------------------------------------------------------------------------------------


def test_a_worker_is_started_and_gets_the_load_order(bench: Bench) -> None:
    assert bench.worker.sent == [ORDER]
    assert bench.supervisor.state == "starting"
    bench.says(frames.Loading("reading weights"))
    assert bench.supervisor.doing == "reading weights"
    bench.says(frames.Loaded(INFO))
    assert (bench.supervisor.state, bench.supervisor.info, bench.supervisor.doing) == ("online", INFO, "")
    assert bench.loads == 1
    assert bench.supervisor.pid == bench.worker.pid


def test_no_prompt_is_sent_before_the_model_is_loaded(bench: Bench) -> None:
    bench.supervisor.send(frames.Cancel("1"))
    assert bench.worker.sent == [ORDER]
    bench.says(frames.Loaded(INFO))
    bench.supervisor.send(frames.Cancel("1"))
    assert bench.worker.sent == [ORDER, frames.Cancel("1")]


def test_frames_about_prompts_are_handed_on_and_those_of_old_workers_are_not(bench: Bench) -> None:
    bench.says(frames.Loaded(INFO))
    bench.says(frames.Started("1"))
    old = bench.worker.generation
    bench.says(KILLED)
    bench.wait(0.1)
    bench.process(old, frames.Started("2"))
    bench.process(old, KILLED)
    assert bench.frames == [frames.Started("1")]
    assert len(bench.lost) == 1


def test_p06_a_model_that_cannot_be_used_makes_the_device_safe_and_is_tried_again_ever_more_rarely(
    bench: Bench,
) -> None:
    for attempt, wait in enumerate([30, 60, 300, 900, 900], start=1):
        assert len(RecordingClient.made) == attempt
        bench.says(frames.NotLoaded("tampered", "the model is broken; remove it"))
        assert bench.supervisor.state == "safe"
        assert bench.supervisor.failure == ModelFailure("tampered", "the model is broken; remove it")
        bench.wait(wait - 1)
        assert len(RecordingClient.made) == attempt
        bench.wait(1.1)
    bench.says(frames.Loaded(INFO))
    assert (bench.supervisor.state, bench.supervisor.failure) == ("online", None)
    assert bench.lost == []


def test_a_worker_that_ends_three_times_while_it_loads_makes_the_device_safe(bench: Bench) -> None:
    for _ in range(2):
        bench.says(Exited(3))
        bench.wait(1.1)
        assert bench.supervisor.state == "starting"
    bench.says(Exited(3))
    assert bench.supervisor.state == "safe"
    assert bench.supervisor.failure is not None
    assert "ended with exit code 3 while it loaded" in bench.supervisor.failure.message
    assert len(RecordingClient.made) == 3
    bench.wait(31)
    assert len(RecordingClient.made) == 4


def test_a_load_that_takes_for_ever_is_ended(bench: Bench) -> None:
    bench.wait(module.LOAD_DEADLINE - 1)
    assert bench.worker.kills == 0
    bench.wait(2)
    assert bench.worker.kills > 0
    bench.says(KILLED)
    assert bench.lost == ["made no progress and was killed"]


def test_a_process_that_cannot_be_started_makes_the_device_safe(bench: Bench) -> None:
    RecordingClient.startable = False
    bench.says(KILLED)
    bench.wait(0.1)
    assert bench.supervisor.state == "safe"
    assert bench.supervisor.failure is not None
    assert "No such file" in bench.supervisor.failure.message
    RecordingClient.startable = True
    bench.wait(31)
    bench.says(frames.Loaded(INFO))
    assert bench.supervisor.state == "online"


# ---- exits and hangs ------------------------------------------------------------------------------------------------


def test_p11_a_worker_that_ends_is_replaced_at_once_and_then_ever_more_slowly(bench: Bench) -> None:
    for wait in [0.0, 1.0, 5.0, 15.0, 60.0, 60.0]:
        bench.says(frames.Loaded(INFO))
        bench.says(KILLED)
        made = len(RecordingClient.made)
        if wait:
            bench.wait(wait - 0.5)
            assert len(RecordingClient.made) == made
        bench.wait(0.6)
        assert len(RecordingClient.made) == made + 1
        assert bench.supervisor.state == "online"
    assert bench.lost == ["was killed by SIGKILL"] * 6
    assert bench.supervisor.restarts == 6


@pytest.mark.parametrize("good", ["lived for a minute", "answered a prompt"])
def test_earlier_exits_no_longer_count_after_a_worker_that_did_well(bench: Bench, good: str) -> None:
    for _ in range(4):
        bench.says(frames.Loaded(INFO))
        bench.says(KILLED)
        bench.wait(16)
    bench.says(frames.Loaded(INFO))
    if good == "answered a prompt":
        bench.says(frames.Finished("1", Final("stop", "", Usage(), 1, 1.0, 1.0)))
    else:
        for _ in range(13):
            bench.wait(5)
            bench.says(frames.Progress())
    bench.says(KILLED)
    made = len(RecordingClient.made)
    bench.wait(0.1)
    assert len(RecordingClient.made) == made + 1


def test_p10_a_worker_is_pinged_and_killed_when_it_does_not_answer(bench: Bench) -> None:
    bench.says(frames.Loaded(INFO))
    bench.wait(module.HANG_DEADLINE - 0.1)
    assert bench.worker.sent.count(frames.Ping()) == 3
    assert bench.worker.kills == 0
    bench.wait(0.3)
    assert bench.worker.kills > 0
    bench.says(KILLED)
    assert bench.lost == ["made no progress and was killed"]


def test_p10_an_agent_that_stalled_itself_does_not_kill_the_worker_for_it(bench: Bench) -> None:
    """A slow disk holds the agent up; what the worker said meanwhile lies unread. After that it is judged as before."""
    bench.says(frames.Loaded(INFO))
    bench.wait(1)
    bench.now += module.HANG_DEADLINE + 10
    bench.supervisor.tick(stalled=True)
    assert bench.worker.kills == 0
    bench.wait(module.HANG_DEADLINE + 0.3)
    assert bench.worker.kills > 0


def test_p10_any_frame_counts_as_progress(bench: Bench) -> None:
    bench.says(frames.Loaded(INFO))
    for _ in range(10):
        bench.wait(module.HANG_DEADLINE - 1)
        bench.says(frames.Progress())
    assert bench.worker.kills == 0


def test_after_stop_nothing_is_started_or_returned(bench: Bench) -> None:
    bench.says(frames.Loaded(INFO))
    worker = bench.worker
    bench.supervisor.stop()
    assert worker.kills == 1
    bench.process(worker.generation, KILLED)
    bench.pulled(0)
    bench.wait(100)
    assert len(RecordingClient.made) == 1
    assert bench.lost == []


# ---- idle -----------------------------------------------------------------------------------------------------------


def test_an_unloaded_model_stays_online_and_is_loaded_again_by_wake(bench: Bench) -> None:
    bench.wait(2.0)
    bench.says(frames.Loaded(INFO))
    assert 0.0 == bench.supervisor.load_left
    old = bench.worker.generation
    bench.supervisor.unload()
    assert (1, None, "online") == (bench.worker.kills, bench.supervisor.pid, bench.supervisor.state)
    assert (INFO, False, True) == (bench.supervisor.info, bench.supervisor.ready, bench.supervisor.unloaded)
    assert 2.0 == bench.supervisor.load_left
    bench.process(old, KILLED)
    bench.wait(100)
    assert (1, []) == (len(RecordingClient.made), bench.lost)
    bench.outcomes += bench.supervisor.wake()
    bench.wait(0.5)
    assert (2, 1.5) == (len(RecordingClient.made), bench.supervisor.load_left)
    bench.says(frames.Loaded(INFO))
    assert (2, True, 0, 0.0) == (
        bench.loads,
        bench.supervisor.ready,
        bench.supervisor.restarts,
        bench.supervisor.load_left,
    )


def test_p07_a_prompt_while_the_model_is_being_unloaded_waits_until_the_memory_is_free(bench: Bench) -> None:
    bench.says(frames.Loaded(INFO))
    bench.supervisor.unload()
    bench.outcomes += bench.supervisor.wake()
    assert 1 == len(RecordingClient.made)
    bench.process(bench.worker.generation, frames.Progress())
    assert 1 == len(RecordingClient.made)
    bench.says(KILLED)
    assert 2 == len(RecordingClient.made)
    bench.says(frames.Loaded(INFO))
    assert bench.supervisor.ready


# ---- the last good model --------------------------------------------------------------------------------------------

FAILURE = ModelFailure("tampered", "the model is broken; remove it")
BROKEN = frames.NotLoaded(FAILURE.code, FAILURE.message)


def last_good(bench: Bench, *sources: str) -> tuple[frames.Load, ...]:
    """The supervisor falls back to these."""
    orders = tuple(msgspec.structs.replace(ORDER, source=source, digest="sha256:1") for source in sources)
    bench.supervisor._last_good = LastGood(lambda: orders)
    return orders


def test_p04_a_model_that_cannot_be_loaded_is_replaced_by_the_last_good_one(bench: Bench) -> None:
    first, second = last_good(bench, "a", "b")
    bench.says(BROKEN)
    assert ([first], "starting") == (bench.worker.sent, bench.supervisor.state)
    bench.says(frames.NotLoaded("missing", "it is gone"))
    assert [second] == bench.worker.sent
    bench.says(frames.Loaded(INFO))
    assert "online" == bench.supervisor.state
    fallback = bench.supervisor.fallback
    assert fallback is not None
    assert (ORDER, FAILURE) == (fallback.wanted, fallback.failure)
    assert (ORDER.source, "b") == (bench.supervisor.document().instead_of, bench.supervisor.document().source)
    bench.says(KILLED)
    bench.wait(0.1)
    assert ([second], fallback) == (bench.worker.sent, bench.supervisor.fallback)


def test_p04_where_no_earlier_model_loads_either_the_device_is_safe_and_tries_the_one_in_force_again(
    bench: Bench,
) -> None:
    (other,) = last_good(bench, "a")
    for wait in [30, 60, 300]:
        assert [ORDER] == bench.worker.sent
        bench.says(BROKEN)
        assert [other] == bench.worker.sent
        for _ in range(3):
            bench.says(Exited(3))
            bench.wait(1.1)
        assert ("safe", FAILURE, None) == (
            bench.supervisor.state,
            bench.supervisor.failure,
            bench.supervisor.fallback,
        )
        made = len(RecordingClient.made)
        bench.wait(wait - 2.2)
        assert made == len(RecordingClient.made)
        bench.wait(1.2)
    bench.says(frames.Loaded(INFO))
    assert ("online", None) == (bench.supervisor.state, bench.supervisor.fallback)


def test_an_adopted_model_ends_the_fall_back_and_a_rolled_back_one_does_not(bench: Bench) -> None:
    last_good(bench, "a")
    bench.says(BROKEN)
    bench.says(frames.Loaded(INFO))
    fallback, before = bench.supervisor.fallback, bench.supervisor.order
    bench.supervisor.use(before)
    bench.says(frames.Loaded(INFO))
    assert fallback == bench.supervisor.fallback
    bench.supervisor.use(msgspec.structs.replace(ORDER, source="new"))
    bench.says(frames.Loaded(INFO))
    bench.supervisor.adopted()
    assert bench.supervisor.fallback is None


# ---- fetching -------------------------------------------------------------------------------------------------------


def test_a_catalog_model_that_is_missing_is_fetched_and_then_loaded(bench: Bench, pulls: list[list[str]]) -> None:
    bench.says(frames.NotLoaded("missing", "it is not in the store"))
    assert pulls[0][-3:] == ["pull", "smollm2-135m-instruct", "--json"]
    assert (bench.supervisor.state, bench.supervisor.doing) == ("starting", "fetching")
    bench.wait(100)
    assert len(RecordingClient.made) == 1
    bench.pulled(1)
    assert len(RecordingClient.made) == 2
    bench.says(frames.Loaded(INFO))
    assert bench.supervisor.state == "online"


def test_a_fetch_that_fails_makes_the_device_safe_with_its_reason_and_is_tried_again(
    bench: Bench, pulls: list[list[str]]
) -> None:
    bench.says(frames.NotLoaded("missing", "m"))
    bench.pulled(1, ModelFailure("unreachable", "the index cannot be reached"))
    assert bench.supervisor.state == "safe"
    assert bench.supervisor.failure == ModelFailure("unreachable", "the index cannot be reached")
    bench.wait(31)
    bench.says(frames.NotLoaded("missing", "m"))
    assert len(pulls) == 2


def test_a_fetch_that_cannot_be_started_makes_the_device_safe(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    bench.says(frames.NotLoaded("missing", "m"))
    assert bench.supervisor.failure == ModelFailure(
        "pull_failed", "the model cannot be fetched: Cannot allocate memory"
    )


def test_a_model_that_is_fetched_and_still_missing_is_not_fetched_for_ever(
    bench: Bench, pulls: list[list[str]]
) -> None:
    bench.says(frames.NotLoaded("missing", "it is not in the store"))
    bench.pulled(1)
    bench.says(frames.NotLoaded("missing", "it is not in the store"))
    assert len(pulls) == 1
    assert bench.supervisor.state == "safe"


@pytest.mark.parametrize(
    "source", ["hf:owner/name", "hf:owner/name/file.gguf@main", "https://example.org/x.gguf", "http://127.0.0.1/x.gguf"]
)
def test_what_the_hub_or_an_address_has_is_fetched(bench: Bench, pulls: list[list[str]], source: str) -> None:
    other = Bench(frames.Load(source, None, "auto", "auto", 64, None, "/store"))
    other.says(frames.NotLoaded("missing", "it is not in the store"))
    assert pulls[0][-3:] == ["pull", source, "--json"]


@pytest.mark.parametrize("source", ["/models/x.gguf", "./x", "sha256:" + "0" * 64, "x.gguf"])
def test_what_only_this_machine_can_have_is_not_fetched(bench: Bench, pulls: list[list[str]], source: str) -> None:
    other = Bench(frames.Load(source, None, "auto", "auto", 64, None, "/store"))
    other.says(frames.NotLoaded("missing", "there is no such file"))
    assert pulls == []
    assert other.supervisor.state == "safe"


def test_the_end_of_an_older_fetch_counts_for_nothing(bench: Bench, pulls: list[list[str]]) -> None:
    bench.says(frames.NotLoaded("missing", "m"))
    bench.pulled(0)
    assert len(RecordingClient.made) == 1


@pytest.mark.parametrize(
    ("output", "failure"),
    [
        (b'{"error":{"code":"no_disk","message":"free space"}}', ModelFailure("no_disk", "free space")),
        (b"", ModelFailure("pull_failed", "the model could not be fetched (exit code 1); see the log")),
        (b"[]", ModelFailure("pull_failed", "the model could not be fetched (exit code 1); see the log")),
        (b'{"error":5}', ModelFailure("pull_failed", "the model could not be fetched (exit code 1); see the log")),
        (b"\xff\xfe", ModelFailure("pull_failed", "the model could not be fetched (exit code 1); see the log")),
    ],
)
def test_what_a_failed_fetch_says_is_passed_on(output: bytes, failure: ModelFailure) -> None:
    assert model_pull.failure_of(output, 1) == failure
