"""The loop itself, without processes: in which order events are taken, and what is confirmed to the broker."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edged.agent.daemon import Daemon
from edged.agent.events import Event, StopRequested
from edged.agent.model_state import Outcome
from edged.core.prompt import Final, ModelInfo, Usage
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.outbound import ACK_DEADLINE
from edged.worker import frames
from edged.worker.client import Exited, WorkerEvent
from tests.agent.bench import fill_disk

PROMPT = "edged/v1/home/device/pi/prompt/me"
CANCEL = "edged/v1/home/device/pi/cancel/me"


class RecordingConnection:
    """Takes what the daemon does to its connection."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, int]] = []
        self.published: list[tuple[str, bytes, bool]] = []
        self.restarts: list[str] = []

    def acknowledge(self, message: Arrived) -> None:
        self.acknowledged.append((message.session, message.mid))

    def publish(self, session: int, topic: str, payload: bytes, *, retain: bool = False, **_: Any) -> int:
        self.published.append((topic, payload, retain))
        return len(self.published)

    def restart(self, reason: str) -> None:
        self.restarts.append(reason)

    def idle_for(self) -> float:
        return 0.0


class Bench:
    """A daemon whose loop the test turns."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.connection = RecordingConnection()
        own = {"state_dir": str(folder)}
        self.daemon = Daemon(own, "pi", "boot", (), clock=lambda: self.now, connect=lambda *_: self.connection)  # type: ignore[arg-type, return-value]
        self.daemon._journal.open()

    def turn(self, *events: Event) -> None:
        """One round of the loop."""
        self.process(*events)
        self.daemon._upkeep()

    def process(self, *events: Event) -> None:
        self.daemon._dispatcher.process(events)

    def findings(self) -> list[str]:
        """The codes of the findings that hold now."""
        return [finding.code for finding in self.daemon._health.findings()]

    def finals(self) -> list[dict[str, Any]]:
        documents = [json.loads(payload) for topic, payload, _ in self.connection.published if "/reply/" in topic]
        return [document for document in documents if document.get("final")]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for topic, payload, _ in self.connection.published if topic.endswith("/event")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.daemon._journal.close()


def up(session: int = 1, version: str = "5") -> Up:
    return Up(session, version, 1000, None, ())


def arrived(mid: int, body: Any = None, *, session: int = 1, topic: str = PROMPT, **facts: Any) -> Arrived:
    payload = json.dumps({"id": f"p{mid}", "prompt": "x"} if body is None else body).encode()
    return Arrived(
        **{"session": session, "topic": topic, "payload": payload, "qos": 1, "retain": False, "mid": mid, **facts}
    )


def test_p02_a_prompt_is_confirmed_to_the_broker_after_it_is_stored(bench: Bench) -> None:
    bench.turn(up())
    bench.process(arrived(1))
    assert bench.connection.acknowledged == []
    assert len(bench.daemon._journal.open_entries()) == 1
    bench.daemon._upkeep()
    assert bench.connection.acknowledged == [(1, 1)]


def test_confirmations_go_out_in_the_order_of_arrival(bench: Bench) -> None:
    bench.turn(up(), arrived(1), arrived(2, {"all": True}, topic=CANCEL), arrived(3), arrived(4, topic="other"))
    assert bench.connection.acknowledged == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_what_arrives_before_the_subscriptions_stand_is_confirmed_too(bench: Bench) -> None:
    """A broker sends what waited for us right after CONNACK. What is never confirmed uses up its window for good."""
    bench.turn(up(1), Down("a test", 0.0, taken_over=False), arrived(1, session=2), up(2), arrived(2, session=2))
    assert bench.connection.acknowledged == [(2, 1), (2, 2)]


def test_what_an_old_connection_delivered_is_not_confirmed_on_a_new_one(bench: Bench) -> None:
    bench.turn(up(1), arrived(1, session=1), Down("a test", 0.0, taken_over=False), up(2))
    assert (2, 1) not in bench.connection.acknowledged


def test_a_prompt_and_its_cancel_in_one_batch_are_taken_in_order(bench: Bench) -> None:
    bench.turn(up(), arrived(1), arrived(2, {"id": "p1"}, topic=CANCEL), arrived(3))
    assert [(f["id"], f["reason"]) for f in bench.finals()] == [("p1", "cancelled")]
    assert [e.job.id for e in bench.daemon._journal.open_entries()] == ["p3"]


def test_p02_prompts_that_cannot_be_stored_are_refused_and_the_connection_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    bench.turn(up())
    monkeypatch.setattr(bench.daemon._journal, "admit", full)
    bench.turn(arrived(1))
    assert ([(1, 1)], []) == (bench.connection.acknowledged, bench.connection.restarts)
    assert [("p1", "unavailable")] == [(final["id"], final["reason"]) for final in bench.finals()]
    assert "journal" == bench.findings()[-1]
    monkeypatch.undo()
    bench.turn(arrived(2))
    assert ["p2"] == [entry.job.id for entry in bench.daemon._journal.open_entries()]
    assert "journal" not in bench.findings()


def test_a_journal_that_cannot_be_read_confirms_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker delivers the prompts again."""

    def broken(*_: Any) -> None:
        raise sqlite3.DatabaseError("disk I/O error")

    bench.turn(up())
    monkeypatch.setattr(bench.daemon._admission._rules, "_find", broken)
    bench.turn(arrived(1))
    assert ([], ["the journal cannot be read"]) == (bench.connection.acknowledged, bench.connection.restarts)
    assert [] == bench.finals()


BAD = {"id": "bad", "prompt": 5}


def test_a_refusal_goes_out_after_the_acknowledgement(bench: Bench) -> None:
    """A connection that ends between the two delivers the prompt again, and it must not be decided otherwise."""
    bench.turn(up())
    bench.process(arrived(1, BAD))
    assert ([], []) == (bench.connection.acknowledged, bench.finals())
    bench.daemon._upkeep()
    assert ([(1, 1)], ["bad"]) == (bench.connection.acknowledged, [final["id"] for final in bench.finals()])


def test_a_refusal_of_an_ended_connection_is_decided_when_it_is_delivered_again(bench: Bench) -> None:
    bench.turn(up())
    bench.process(arrived(1, BAD), Down("a test", 0.0, taken_over=False))
    bench.turn(up(2), arrived(1, BAD, session=2))
    assert ([(2, 1)], ["bad"]) == (bench.connection.acknowledged, [final["id"] for final in bench.finals()])


def test_a_refusal_at_qos_0_outlives_its_connection(bench: Bench) -> None:
    """Nobody delivers it again."""
    bench.turn(up())
    bench.process(arrived(1, BAD, qos=0), Down("a test", 0.0, taken_over=False))
    bench.turn(up(2))
    assert ["bad"] == [final["id"] for final in bench.finals()]


def test_a_refusal_on_its_way_is_the_answer_to_a_second_delivery(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acknowledgement was written but did not arrive; by now the prompt could be accepted."""
    monkeypatch.setattr(bench.daemon._admission, "_unavailable", lambda: "not now")
    bench.turn(up(), arrived(1))
    assert ["unavailable"] == [final["reason"] for final in bench.finals()]
    bench.turn(Down("a test", 0.0, taken_over=False))
    monkeypatch.undo()
    bench.turn(up(2), arrived(1, session=2))
    assert [] == bench.daemon._journal.open_entries()
    assert {"unavailable"} == {final["reason"] for final in bench.finals()}
    assert [(1, 1), (2, 1)] == bench.connection.acknowledged


def test_p01_a_full_disk_ends_nothing(bench: Bench) -> None:
    """An answer, the broker's confirmations and the housekeeping wait until there is space; health says why."""
    bench.daemon._supervisor.state = "online"
    bench.turn(up(), arrived(1), arrived(2, {"id": "p2", "prompt": 5}))
    bench.daemon._queue._prompts[1].submitted = True
    disk = fill_disk(bench.daemon._journal)
    bench.daemon._queue.process_frame(frames.Finished("1", Final("stop", "done", Usage(), 9, 1.0, 1.0)))
    for mid in range(1, len(bench.connection.published) + 1):
        bench.turn(Acked(1, mid))
    bench.now += 100
    bench.turn()
    assert "journal" in bench.findings()
    assert [f["id"] for f in bench.finals()] == ["p2"]
    disk.full = False
    bench.now += 100
    bench.turn()
    assert [f["id"] for f in bench.finals()] == ["p2", "p1"]
    assert "journal" not in bench.findings()


def test_p09_confirmations_that_lie_unread_after_a_stall_are_not_missed(bench: Bench) -> None:
    """A slow disk held the loop up; the connection is given up only if they have not come by the next turn, and the
    worker is not judged either."""
    judged: list[bool] = []

    def tick(*, stalled: bool = False) -> list[Outcome]:
        judged.append(stalled)
        return []

    bench.daemon._supervisor.tick = tick  # type: ignore[method-assign]
    bench.turn(up())
    bench.now += ACK_DEADLINE + 5
    bench.turn()
    assert bench.connection.restarts == []
    bench.now += 1
    bench.turn()
    assert bench.connection.restarts == ["the broker does not acknowledge what is published"]
    assert judged == [False, True, False]


def test_p01_an_older_copys_confirmation_does_not_count_for_the_newest(bench: Bench) -> None:
    """A finished prompt comes again before the broker has confirmed its final: only the newest copy's end counts."""
    bench.turn(up(), arrived(1), arrived(2, {"id": "p1"}, topic=CANCEL))
    first = len(bench.connection.published)
    bench.turn(arrived(1))
    bench.turn(Acked(1, first))
    assert len(bench.daemon._journal.undelivered()) == 1
    bench.turn(Acked(1, len(bench.connection.published)))
    assert bench.daemon._journal.undelivered() == []


def test_damaged_layers_on_disk_are_moved_away_and_reported(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_bytes(b"garbage")
    config = Bench(tmp_path).daemon._config
    assert config.damage is not None
    assert str(tmp_path / "layers.damaged") in config.damage
    assert (tmp_path / "layers.damaged").read_bytes() == b"garbage"
    assert config.apply("device", b'{"revision":1,"settings":{}}', 1.0)
    assert Bench(tmp_path).daemon._config.damage is None


def test_p09_while_answers_pile_up_unconfirmed_prompts_are_not_confirmed_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.link.outbound.CONGESTED_AT", 10)
    bench.turn(up())
    bench.turn(*(arrived(i, {"id": f"p{i}", "prompt": 5}) for i in range(1, 30)))
    bench.turn(arrived(30))
    assert len(bench.connection.acknowledged) < 30
    mid = 0
    while mid < len(bench.connection.published):
        mid += 1
        bench.turn(Acked(1, mid))
    assert len(bench.connection.acknowledged) == 30


def test_p09_nor_while_few_answers_of_many_bytes_do(bench: Bench) -> None:
    """Refusals carry the sender's correlation data, and none may be dropped for lack of space."""
    bench.turn(up())
    sent, acknowledged = 0, bench.connection.acknowledged
    while sent < 300 and sent - len(acknowledged) < 100:  # the Receive Maximum
        sent += 1
        bench.turn(arrived(sent, {"id": f"p{sent}", "prompt": 5}, correlation=b"c" * 60_000))
    assert sent < 150
    while len(acknowledged) < sent:
        bench.turn(*(Acked(1, mid) for mid in range(1, len(bench.connection.published) + 1)))
    assert (len(bench.finals()), bench.daemon._outbound.dropped) == (sent, 0)


def test_a_retained_prompt_on_3_1_1_gets_no_reply_but_is_counted(bench: Bench) -> None:
    """What the broker keeps comes at every subscribe there, and cannot be told from a live one otherwise."""
    bench.turn(up(version="3.1.1"), arrived(1, retain=True), arrived(2))
    assert [e["code"] for e in bench.events()] == ["bad_request"]
    assert bench.finals() == []
    assert [e.job.id for e in bench.daemon._journal.open_entries()] == ["p2"]
    assert bench.connection.acknowledged == [(1, 1), (1, 2)]


def test_a_flood_at_quality_0_is_dropped_and_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.agent.mailbox.LIMIT", 10)
    for mid in range(50):
        bench.daemon._mailbox.post_from_link(arrived(mid, qos=0))
        bench.daemon._mailbox.post_from_link(arrived(mid, qos=1))
    assert len(bench.daemon._mailbox) < 70
    assert bench.daemon._health_documents()[2].dropped > 30


def test_p09_a_flood_of_large_messages_is_bounded_in_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.agent.mailbox.MAX_BYTES", 10_000)
    for mid in range(50):
        bench.daemon._mailbox.post_from_link(arrived(mid, "x" * 1000, qos=0))
    assert len(bench.daemon._mailbox) < 13
    bench.turn(up(), *bench.daemon._wait())
    bench.daemon._mailbox.post_from_link(arrived(99, "x" * 1000, qos=0))
    assert len(bench.daemon._mailbox) == 1


def test_another_board_of_our_name_is_told_as_an_event_once_we_are_back(bench: Bench) -> None:
    bench.turn(up(), Down("another board uses this name; …", 200.0, taken_over=True))
    bench.turn(up(2))
    assert [e["code"] for e in bench.events()] == ["name_taken"]


def test_offline_on_our_own_status_is_published_over_while_we_are_connected(bench: Bench) -> None:
    status = "edged/v1/home/device/pi/status"
    bench.daemon._reporter.set_status("online")
    bench.turn(up())
    bench.connection.published.clear()
    bench.turn(arrived(1, topic=status, payload=b"online"), arrived(2, topic=status, payload=b"offline"))
    assert [(topic, payload, retain) for topic, payload, retain in bench.connection.published if topic == status] == [
        (status, b"online", True)
    ]


def test_a_subscription_that_the_broker_refuses_is_a_finding_that_names_the_topic(bench: Bench) -> None:
    bench.turn(Up(1, "5", 1000, None, (f"{PROMPT[:-2]}+",)))
    (finding,) = bench.daemon._reporter.findings
    assert (finding.code, finding.severity) == ("subscription_refused", "failing")
    assert "edged/v1/home/device/pi/prompt/+" in finding.advice


def test_a_receipt_names_the_config_in_force(bench: Bench) -> None:
    layer = {"revision": 7, "settings": {"generation": {"max_tokens": 3}}}
    bench.turn(up(), arrived(1, layer, topic="edged/v1/home/config"))
    assert bench.daemon._config.in_force.revisions == {"fleet": 7}
    assert bench.daemon._config.in_force.settings.generation.max_tokens == 3


class RecordingClient:
    """A worker's process in name only."""

    pid = 5

    def __init__(self, generation: int = 1) -> None:
        self.generation = generation
        self.sent: list[object] = []

    def send(self, frame: object) -> None:
        self.sent.append(frame)


def loaded(bench: Bench) -> RecordingClient:
    """A worker with a loaded model."""
    client = RecordingClient()
    bench.daemon._supervisor._client = client  # type: ignore[assignment]
    bench.turn(WorkerEvent(1, frames.Loaded(ModelInfo("m", "sha256:0", "llama", "q4_1", "torch", 64, 4, 100))))
    return client


def test_the_model_that_is_loaded_stands_in_the_health(bench: Bench) -> None:
    bench.turn(up())
    loaded(bench)
    health = [json.loads(p) for topic, p, _ in bench.connection.published if topic.endswith("/health")]
    assert health[-1]["model"]["name"] == "m"
    assert health[-1]["mqtt"] == {"version": "5", "connects": 1}


def test_p02_a_stop_takes_back_what_the_worker_has_not_begun_and_keeps_it_for_the_next_start(bench: Bench) -> None:
    bench.turn(up())
    worker = loaded(bench)
    bench.turn(arrived(1), arrived(2))
    bench.turn(WorkerEvent(1, frames.Started("1")))
    bench.turn(StopRequested())
    assert worker.sent[-1] == frames.Cancel("2")
    assert not bench.daemon._shutdown.complete
    bench.turn(WorkerEvent(1, frames.Finished("2", Final("cancelled", "", Usage(), 1, 0.0, 0.0))), arrived(3))
    bench.turn(WorkerEvent(1, frames.Finished("1", Final("stop", "x", Usage(), 1, 0.0, 0.0))))
    assert bench.daemon._shutdown.complete
    assert [(f["id"], f["reason"]) for f in bench.finals()] == [("p3", "unavailable"), ("p1", "stop")]
    assert [e.job.id for e in bench.daemon._journal.open_entries()] == ["p2"]


def test_a_stop_waits_eight_seconds_for_what_runs(bench: Bench) -> None:
    bench.turn(up())
    loaded(bench)
    bench.turn(arrived(1), WorkerEvent(1, frames.Started("1")), StopRequested())
    bench.now += 7.9
    assert not bench.daemon._shutdown.complete
    bench.now += 0.2
    assert bench.daemon._shutdown.complete


def test_no_usable_model_is_logged_once_each_time_it_is_found_out(bench: Bench) -> None:
    """Not again while a retry loads the model."""
    supervisor = bench.daemon._supervisor
    with capture_logs() as log:
        for generation in range(1, 4):
            supervisor._client = RecordingClient(generation)  # type: ignore[assignment]
            bench.turn(WorkerEvent(generation, Exited(3)))
        assert "safe" == supervisor.state
        supervisor._client = RecordingClient(4)  # type: ignore[assignment]
        for step in ("reading", "verifying"):
            bench.turn(WorkerEvent(4, frames.Loading(step)))
    events = [entry["event"] for entry in log]
    assert 1 == events.count("no usable model")
    assert 2 == events.count("loading the model")
