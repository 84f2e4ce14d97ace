"""The composition root: makes every part, wires them, and runs the one loop that owns them.

All state belongs to the main thread. Other threads (the network's, the worker's reader, the telemetry's) post to the
mailbox; the loop takes what lies there, acts on it in order, and acknowledges after the journal.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edged.agent import findings, logs
from edged.agent.admission import Intake
from edged.agent.file_findings import FileFindings
from edged.agent.journal import Journal
from edged.agent.journal_maintenance import Keeper
from edged.agent.mailbox import Mailbox
from edged.agent.prompt_queue import Desk
from edged.agent.pushes import Pushes
from edged.agent.receipts import Context
from edged.agent.replies import Replies
from edged.agent.reporter import Reporter
from edged.agent.supervisor import PullEnded, Supervisor, load_order
from edged.agent.systemd import Notifier
from edged.agent.telemetry_thread import Sensing
from edged.agent.wall_clock import WallClock
from edged.config.schema import Settings, build
from edged.core.health import Finding
from edged.core.reading import Reading
from edged.device.clock import clock_state
from edged.fleet.desired import DesiredConfig
from edged.link.attempt import Subscription, Will
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.outbound import Outbound
from edged.wire import documents
from edged.wire.topics import Inbound, Topics
from edged.worker import frames

DRAIN_SECONDS = 8.0
GOODBYE_SECONDS = 1.5
_STALL = 8.0  # seconds between two turns of the loop, after which what others said may lie unread


class Stop(msgspec.Struct, frozen=True):
    """A signal asked us to end."""


class Daemon:
    """One device. `run` returns when it was told to stop."""

    def __init__(
        self,
        own: dict[str, Any],
        device: str,
        boot: str,
        pull_arguments: tuple[str, ...],
        *,
        clock: Callable[[], float] = time.monotonic,
        worker_command: tuple[str, ...] | None = None,
    ) -> None:
        self._clock = clock
        self._log = logs.logger()
        base = build(own)
        self._state_dir = Path(base.state_dir)
        self._topics = Topics(base.identity.fleet, device, base.identity.groups)
        self._config = DesiredConfig(own, self._topics, self._state_dir / "layers.json")
        self._mailbox = Mailbox()
        self._acks: deque[Arrived] = deque()
        self._wall = WallClock(clock)
        self._draining: float | None = None
        self._link = documents.LinkState("none", 0)
        self._link_down: str | None = "not connected yet"
        self._refused_topics: tuple[str, ...] = ()
        self._turned = clock()
        self._stalled: str | None = None
        self._journal = Journal(self._state_dir / "journal.db")
        self._connection = Connection(
            base.mqtt,
            f"edged-{self._topics.fleet}-{device}",
            Will(self._topics.status, b"offline"),
            self._subscriptions(),
            self._mailbox.post_from_link,
        )
        self._outbound = Outbound(self._connection, self._delivered, clock)
        self._replies = Replies(self._outbound, self._wall)
        order = load_order(self._config.settings.model, self._state_dir / "models")
        self._supervisor = Supervisor(order, pull_arguments, self, self._mailbox.post, clock, worker_command)
        self._context = Context(device, dict(self._config.reported.in_force))
        self._desk = Desk(
            self._journal, self._replies, self._supervisor, self._context, clock, self._wall, self._wall.sure
        )
        kept = (self._journal, self._desk, self._replies, self._outbound)
        self._keeper = Keeper(*kept, self._wall, lambda: self._config.settings.limits.remember, clock())
        self._reporter = Reporter(self._topics, self._outbound, self._state, boot, clock, self._wall)
        self._files = FileFindings(self._journal, self._state_dir, base.mqtt.password_file, self._reporter.event)
        self._pushes = Pushes(
            self._config, self._topics.reported, self._outbound, self._reporter, self._put_in_force, self._wall
        )
        self._intake = Intake(
            self._topics,
            self._journal,
            self._desk,
            self._replies,
            lambda: self._config.settings,
            self._closed,
            self._reporter.bad_request,
            self._wall,
        )
        self._notifier = Notifier(os.environ, clock)
        self._sensing = Sensing(self._state_dir, self._config.settings.telemetry.interval, self._mailbox.post)

    # ---- life -------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; gives the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._mailbox.post(Stop()))
        self._journal.open()
        self._wall.begin(self._journal.fact("wall_floor", 0.0))
        self._wall.trust(clock_state(Path("/")).synced)
        self._desk.restore(self._journal.open_entries())
        self._reporter.set_status("starting")
        self._log.info(
            "started",
            pid=os.getpid(),
            device=self._topics.device,
            fleet=self._topics.fleet,
            open_prompts=self._desk.open,
        )
        self._files.look(self._config.damaged)
        self._connection.start()
        self._supervisor.start()
        self._sensing.start()
        self._notifier.ready()
        while not self._drained():
            self._take(self._wait())
            self._upkeep()
        return self._say_goodbye()

    def _wait(self) -> list[object]:
        """What lies in the mailbox, or nothing when something falls due first."""
        due = [self._supervisor.next_tick(), self._desk.next_deadline(), self._clock() + 1.0]
        if self._draining is not None:
            due.append(self._draining)
        timeout = max(0.0, min(moment for moment in due if moment is not None) - self._clock())
        return self._mailbox.take(timeout)

    def _upkeep(self) -> None:
        now = self._clock()
        stood_still, self._turned = now - self._turned > _STALL, now
        self._desk.expire()
        self._supervisor.tick(stalled=stood_still)
        if not stood_still and self._outbound.overdue():
            self._connection.restart("the broker does not confirm what we publish")
        while self._acks and not self._outbound.congested:  # the broker sends no more than we acknowledge
            self._connection.acknowledge(self._acks.popleft())
        if self._keeper.turn(now) | self._files.look():
            self._look_at_findings()
        self._reporter.check_health()
        self._notifier.status(f"model {self._supervisor.state}, {self._link_down or 'connected'}")
        stalled = self._notifier.pet({"link": self._connection.idle_for(), "sensing": self._sensing.busy_for()})
        if stalled != self._stalled:
            self._stalled = stalled
            if stalled is not None:
                self._log.error("a loop makes no progress; the watchdog is no longer petted", loop=stalled)

    def _drained(self) -> bool:
        if self._draining is None:
            return False
        return self._desk.running == 0 or self._clock() >= self._draining

    def _say_goodbye(self) -> int:
        self._sensing.stop()
        self._supervisor.stop()
        self._reporter.set_status("offline")
        until = self._clock() + GOODBYE_SECONDS
        while self._outbound.backlog and self._link_down is None and self._clock() < until:
            for event in self._mailbox.take(max(0.0, until - self._clock())):
                if isinstance(event, Acked):
                    self._outbound.acked(event.session, event.mid, event.refused, temporary=event.temporary)
        self._connection.stop()
        self._journal.close()
        self._log.info("stopped", open_prompts=self._desk.open)
        return 0

    # ---- events -----------------------------------------------------------------------------------------------------

    def _take(self, events: list[object]) -> None:
        prompts: list[tuple[str, Arrived]] = []
        for event in events:
            message = event if isinstance(event, Arrived) and event.unreadable is None else None
            asked = self._topics.parse(message.topic) if message is not None else None
            if message is not None and asked is not None and asked.kind == "prompt":
                if message.retain and self._link.version == "3.1.1":
                    self._reporter.bad_request("a retained prompt was ignored; publish prompts without retain")
                    self._acks.append(message)
                else:
                    prompts.append((asked.name, message))
                continue
            if prompts:
                self._take_prompts(prompts)
                prompts = []
            self._take_other(event)
        if prompts:
            self._take_prompts(prompts)

    def _take_prompts(self, prompts: list[tuple[str, Arrived]]) -> None:
        try:
            self._intake.take(prompts)
        except sqlite3.Error:
            # Not acknowledged: the broker brings them again after the reconnect, when the disk may have room.
            self._connection.restart("prompts cannot be stored")
            return
        self._acks.extend(message for _, message in prompts)

    def _take_other(self, event: object) -> None:
        if isinstance(event, Arrived):
            self._take_message(event)
            self._acks.append(event)
        elif isinstance(event, Acked):
            self._outbound.acked(event.session, event.mid, event.refused, temporary=event.temporary)
            if event.refused is not None:
                self._log.warning(
                    "the broker refused a message", topic=self._outbound.refused_topic, reason=event.refused
                )
                self._look_at_findings()
        elif isinstance(event, Up):
            self._went_up(event)
        elif isinstance(event, Down):
            self._went_down(event)
        elif isinstance(event, Reading):
            self._take_reading(event)
        elif isinstance(event, PullEnded):
            self._supervisor.pulled(event)
        elif isinstance(event, Stop):
            self._begin_to_drain()
        elif isinstance(event, tuple):
            self._supervisor.handle(*event)

    def _take_message(self, message: Arrived) -> None:
        asked = self._topics.parse(message.topic)
        if message.unreadable is not None:
            self._take_unreadable(asked, message, message.unreadable)
            return
        if asked is None:
            return
        if asked.kind == "cancel":
            self._intake.cancel(asked.name, message)
        elif asked.kind == "command":
            self._intake.command(asked.name, message)
        elif asked.kind == "config":
            self._pushes.take(asked.name, message.payload)
        elif asked.kind == "status" and message.payload == b"offline" and self._reporter.status != "offline":
            self._reporter.publish_status()  # an old connection's will came late

    def _take_unreadable(self, asked: Inbound | None, message: Arrived, why: str) -> None:
        if asked is not None and asked.kind in ("prompt", "command"):
            self._intake.unreadable(asked.name, message, why)
        elif asked is not None and asked.kind == "config":
            self._pushes.refuse(asked.name, why)
        else:
            self._reporter.bad_request(f"a message to {message.topic} was ignored: {why}")

    def _begin_to_drain(self) -> None:
        if self._draining is not None:
            return
        self._draining = self._clock() + DRAIN_SECONDS
        self._notifier.stopping()
        self._log.info("stopping", running=self._desk.running)
        self._desk.drain()
        self._reporter.set_status("draining")

    # ---- the broker -------------------------------------------------------------------------------------------------

    def _subscriptions(self) -> tuple[Subscription, ...]:
        live = (self._topics.prompts, self._topics.cancels, self._topics.commands, self._topics.status)
        kept = tuple(self._topics.layers)
        return tuple(Subscription(topic, retained=False) for topic in live) + tuple(
            Subscription(topic, retained=True) for topic in kept
        )

    def _went_up(self, event: Up) -> None:
        self._link = documents.LinkState(event.version, self._link.connects + 1)
        self._link_down, self._refused_topics = None, event.refused
        # What waited at the broker comes before the subscriptions stand; it is this connection's to confirm.
        self._acks = deque(message for message in self._acks if message.session == event.session)
        self._outbound.up(event.session, event.window, event.max_packet)
        self._log.info("connected", mqtt=event.version, refused=list(event.refused) or None)
        self._reporter.born()
        self._pushes.report()
        self._look_at_findings()
        self._keeper.resend()

    def _went_down(self, event: Down) -> None:
        self._link_down = event.reason
        self._reporter.cut_off()
        self._outbound.down(closed_by_broker=event.closed_by_broker)
        self._log.warning("not connected", reason=event.reason, retry_in_s=round(event.retry_in, 1))
        if event.taken_over:
            self._reporter.event("name_taken", event.reason)

    def _delivered(self, token: object) -> None:
        self._keeper.delivered(token)

    # ---- the model --------------------------------------------------------------------------------------------------

    def model_changed(self) -> None:
        """See `supervisor.Listener`."""
        self._sensing.set_worker(self._supervisor.pid)
        trouble = self._supervisor.trouble
        if self._supervisor.state == "safe" and trouble is not None:
            self._log.error("no usable model", code=trouble.code, reason=trouble.message)
            self._desk.refuse_all(trouble.message)
        elif self._supervisor.doing:
            self._log.info("model", doing=self._supervisor.doing)
        if self._draining is None:
            self._reporter.set_status(self._supervisor.state)
        self._look_at_findings()

    def model_loaded(self) -> None:
        """See `supervisor.Listener`."""
        info = self._supervisor.info
        if info is not None:
            self._log.info("model loaded", model=info.name, computes=info.quantization, backend=info.backend)
            if info.fallback:
                self._log.warning("the native engine does not compute this model", reason=info.fallback)
        if self._draining is None:
            self._desk.hand_out()

    def worker_frame(self, frame: frames.FromWorker) -> None:
        """See `supervisor.Listener`."""
        self._desk.heard(frame)

    def worker_lost(self, how: str) -> None:
        """See `supervisor.Listener`."""
        self._log.warning("the worker is gone", how=how, prompts=self._desk.given)
        self._reporter.event("worker_died", f"the model's process {how} and is replaced")
        self._desk.lost_worker(how)

    def _put_in_force(self, settings: Settings, revisions: dict[str, int]) -> None:
        self._sensing.set_interval(settings.telemetry.interval)
        logs.configure(settings.log.level, settings.log.format)
        self._context.config = revisions

    # ---- how we are -------------------------------------------------------------------------------------------------

    def _take_reading(self, reading: Reading) -> None:
        self._wall.trust(reading.clock_synced)
        self._context.throttled = reading.throttled
        self._reporter.take_reading(reading, self._findings())

    def _look_at_findings(self) -> None:
        self._reporter.set_findings(self._findings())

    def _findings(self) -> tuple[Finding, ...]:
        own = findings.of_agent(
            self._supervisor.trouble if self._supervisor.state == "safe" else None,
            self._refused_topics,
            self._outbound.refused_topic,
            self._keeper.trouble,
            self._wall(),
            self._reporter.findings,
        )
        files = self._files.findings(self._wall(), self._reporter.findings)
        return self._sensing.findings + own + files

    def _state(self) -> tuple[documents.LinkState, documents.ModelState, documents.Queue, documents.Speed]:
        desk, model = self._desk, self._supervisor.document()
        waiting = documents.Queue(
            open=desk.open,
            running=desk.running,
            limit=self._config.settings.limits.queue,
            answered=desk.finished,
            refused=self._intake.refused,
            bad_requests=self._reporter.bad_requests,
            dropped=self._mailbox.dropped + self._outbound.dropped,
        )
        return self._link, model, waiting, documents.Speed(desk.speed.tokens_per_second, desk.speed.ttft_ms)

    def _closed(self) -> str | None:
        """Why no prompt is taken now."""
        if self._draining is not None:
            return "the device is stopping; send the prompt again when its status is online"
        if self._supervisor.state == "safe":
            trouble = self._supervisor.trouble
            return f"no usable model: {trouble.message if trouble else 'see the health topic'}"
        return None
