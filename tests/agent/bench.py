"""A queue and an admission without I/O: a clock that tests set, a worker and an outgoing side that only record."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from edged.agent.admission import Admission
from edged.agent.commands import Done
from edged.agent.journal import Job, Journal, ReplyTo, body_digest
from edged.agent.prompt_queue import PromptQueue
from edged.config.schema import Limits, Settings
from edged.core.prompt import DEFAULT_PRIORITY, Final, ModelInfo, Reason, Request, Sampling, Turn, Usage
from edged.fleet.desired import InForce
from edged.link.events import Arrived
from edged.link.publication import Publication
from edged.wire.commands import CommandName
from edged.wire.topics import Topics
from edged.worker import frames

INFO = ModelInfo("m", "sha256:0", "llama", "q4_1", "torch", 64, 4, 100)


class Clock:
    """Monotonic and wall time, both moved by hand."""

    def __init__(self) -> None:
        self.up = 1000.0
        self.wall = 50_000.0

    def wait(self, seconds: float) -> None:
        self.up += seconds
        self.wall += seconds


class RecordingWorker:
    """Takes frames. `info` None: no model is loaded; `replaced`: the worker that had it is gone."""

    def __init__(self) -> None:
        self.info: ModelInfo | None = INFO
        self.replaced = False
        self.load_left = 0.0
        self.frames: list[frames.ToWorker] = []

    def send(self, frame: frames.ToWorker) -> None:
        self.frames.append(frame)

    @property
    def ready(self) -> bool:
        return self.info is not None and not self.replaced

    @property
    def added(self) -> list[str]:
        return [frame.key for frame in self.frames if isinstance(frame, frames.Add)]

    @property
    def cancelled(self) -> list[str]:
        return [frame.key for frame in self.frames if isinstance(frame, frames.Cancel)]


class RecordingReplies:
    """Takes replies: (topic, document) in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[object] = []
        self.pending: set[object] = set()

    def send_now(self, to: ReplyTo, payload: bytes) -> None:
        self.sent.append((to.topic, json.loads(payload)))

    def send_final(self, to: ReplyTo, prompt_id: str, payload: bytes, token: object) -> None:
        self.publish(self.final(to, prompt_id, payload, token))

    def final(self, to: ReplyTo, prompt_id: str, payload: bytes, token: object) -> Publication:
        return Publication(topic=to.topic, payload=payload, correlation=to.correlation, token=token)

    def publish(self, publication: Publication) -> None:
        self.sent.append((publication.topic, json.loads(publication.payload)))
        self.tokens.append(publication.token)

    def is_on_its_way(self, token: object) -> bool:
        return token in self.pending

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [document for _, document in self.sent]

    @property
    def finals(self) -> list[dict[str, Any]]:
        return [document for document in self.documents if document.get("final")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [document for document in self.documents if "seq" in document]


class Bench:
    """See the module. The journal is SQLite in memory; the desired config is `in_force`."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.worker = RecordingWorker()
        self.replies = RecordingReplies()
        self.journal = Journal(Path(":memory:"))
        self.journal.open()
        self.in_force = InForce(Settings(limits=Limits(**limits)), {"fleet": 7})
        self.closed: str | None = None
        self.bad: list[str] = []
        self.executed: list[str] = []
        self.topics = Topics("home", "pi")
        self.make_queue()

    @property
    def settings(self) -> Settings:
        return self.in_force.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.in_force = InForce(settings, self.in_force.revisions)

    def make_queue(self) -> None:
        """A queue and an admission as after a start of the agent; the journal is the one that is there."""
        self.queue = PromptQueue(
            self.journal,
            self.replies,  # type: ignore[arg-type]
            self.worker,
            self,  # type: ignore[arg-type]
            "pi",
            lambda: self.clock.up,
            lambda: self.clock.wall,
            lambda: self.clock.wall,
        )
        self.admission = Admission(
            self.topics,
            self.journal,
            self.queue,
            self.replies,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            lambda: self.closed,
            self.bad.append,
            lambda: self.clock.up,
            lambda: self.clock.wall,
            lambda: self.clock.wall,
            self.execute,
        )

    def execute(self, command: CommandName) -> Done:
        """Carries out no command: only counts."""
        self.executed.append(command)
        return Done(f"done: {command}")

    # ---- straight to the queue ---------------------------------------------------------------------------------------

    def accept(
        self,
        prompt_id: str,
        *,
        requester: str = "me",
        priority: int = DEFAULT_PRIORITY,
        stream: bool = True,
        expires_in: float | None = None,
        max_tokens: int = 256,
    ) -> int:
        """Store a prompt and hand it to the queue; gives its number."""
        request = Request((Turn("user", "x"),), None, Sampling(max_tokens=max_tokens), priority)
        expires = None if expires_in is None else self.clock.wall + expires_in
        job = Job(requester, prompt_id, request, stream, ReplyTo(f"reply/{prompt_id}"), self.clock.wall, expires)
        body = body_digest(prompt_id.encode())
        with self.journal.transaction():
            seq = self.journal.admit(job, body)
        self.queue.accept(seq, job, body)
        return seq

    def started(self, *seqs: int) -> None:
        for seq in seqs:
            self.queue.process_frame(frames.Started(str(seq)))

    def generated(self, seq: int, at: int, text: str) -> None:
        self.queue.process_frame(frames.Generated(str(seq), at, text))

    def finished(
        self, seq: int, text: str = "done", reason: Reason = "stop", tokens: int = 3, ms: float = 20.0
    ) -> None:
        self.queue.process_frame(frames.Finished(str(seq), Final(reason, text, Usage(2, 0, tokens), 9, 1.0, ms)))

    # ---- through the admission --------------------------------------------------------------------------------------

    def arrive(self, *messages: Arrived, requester: str = "me") -> None:
        for answer in self.admission.process_prompts([(requester, message) for message in messages]):
            if answer is not None:
                self.replies.publish(answer)

    def command(self, message: Arrived, requester: str = "me") -> None:
        if (answer := self.admission.process_command(requester, message)) is not None:
            self.replies.publish(answer)


def message(body: Any, **facts: Any) -> Arrived:
    """A message as the link hands it over; `body` is JSON unless it is bytes."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Arrived(**{"session": 1, "topic": "t", "payload": payload, "qos": 1, "retain": False, "mid": 1, **facts})


class FullDisk:
    """A database whose COMMIT fails while `full` if there is something to write, as SQLite's does on a full disk."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.full = True
        self.before = 0

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement.startswith("BEGIN"):
            self.before = self.db.total_changes
        if statement == "COMMIT" and self.full and self.db.total_changes > self.before:
            raise sqlite3.OperationalError("database or disk is full")
        return self.db.execute(statement, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self.db, name)


def fill_disk(journal: Journal) -> FullDisk:
    """From now on nothing can be stored."""
    disk = FullDisk(journal._db)
    journal._db = disk  # type: ignore[assignment]
    return disk
