"""The composition root: makes every part, wires them, and runs the one loop that owns them.

All state belongs to the main thread. Other threads (the network's, the worker's reader, the telemetry's) post to the
mailbox; the loop processes what waits there in order, and acknowledges messages after the journal has them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edged.agent import diagnostics, logs
from edged.agent.admission import Admission
from edged.agent.broker_link import BrokerLink, subscriptions
from edged.agent.commands import CommandRefused, Commands, Done
from edged.agent.config_updates import ConfigUpdates
from edged.agent.dispatch import Dispatcher
from edged.agent.drain import Drain
from edged.agent.events import Event, StopRequested
from edged.agent.file_findings import FileFindings
from edged.agent.health_source import HealthDocuments, HealthSource
from edged.agent.home_assistant import HomeAssistant, Withdrawn
from edged.agent.idle_model import IdleModel
from edged.agent.journal import Journal
from edged.agent.journal_maintenance import JournalMaintenance
from edged.agent.last_good import LastGood
from edged.agent.mailbox import Mailbox
from edged.agent.model_receiver import ModelReceiver
from edged.agent.model_upkeep import ModelUpkeep
from edged.agent.pools import MemberFacts, Pools
from edged.agent.prompt_queue import PromptQueue
from edged.agent.replies import Replies
from edged.agent.reporter import Reporter
from edged.agent.shutdown import Shutdown
from edged.agent.supervisor import Supervisor, load_order
from edged.agent.systemd import Notifier
from edged.agent.telemetry_thread import TelemetryThread
from edged.agent.trial_runner import TrialRunner
from edged.agent.wall_clock import WallClock
from edged.config.schema import Settings, build
from edged.device.clock import clock_state
from edged.fleet.desired import NO_CATALOG, DesiredConfig
from edged.fleet.slots import SLOTS_FILE, SlotStore
from edged.link.attempt import Will
from edged.link.connection import Connection
from edged.link.events import Acked
from edged.link.outbound import Outbound
from edged.wire.commands import CommandName
from edged.wire.home_assistant import birth_topic
from edged.wire.topics import Topics
from edged.worker.frames import Load

FLUSH_SECONDS = 1.5  # for the last publications before the connection is closed
_STALL = 8.0  # seconds between two turns of the loop, after which events of other threads may lie unread


class Daemon:
    """One device. `run` returns after SIGTERM or SIGINT. `read_file` reads the owner's file again.

    `connect` makes the connection (tests).
    """

    def __init__(
        self,
        own: dict[str, Any],
        device: str,
        boot: str,
        pull_arguments: tuple[str, ...],
        catalog: Mapping[str, str] = NO_CATALOG,
        *,
        clock: Callable[[], float] = time.monotonic,
        worker_command: tuple[str, ...] | None = None,
        read_file: Callable[[], dict[str, Any]] | None = None,
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        base = build(own)
        state_dir = Path(base.state_dir)
        prefix = base.integrations.home_assistant.prefix
        birth = None if prefix is None else birth_topic(prefix)
        topics = Topics(base.identity.fleet, device, base.identity.groups, birth, base.identity.pools)
        self._topics = topics
        self._clock = clock
        self._log = logs.logger()
        self._turn_at = clock()
        self._stalled_loop: str | None = None
        self._wall = WallClock(clock)
        self._mailbox = Mailbox()
        self._notifier = Notifier(os.environ, clock)
        self._boot = boot
        self._journal = Journal(state_dir / "journal.db")
        self._drain = Drain(self._journal)
        self._config = DesiredConfig(own, topics, state_dir / "layers.json", catalog)
        self._config.load(self._wall())
        settings = self._config.in_force.settings
        self._telemetry = TelemetryThread(state_dir, settings.telemetry.interval, self._mailbox.post)
        self._models = state_dir / "models"
        self._slots = SlotStore(state_dir / SLOTS_FILE)
        self._slots.load()
        self._supervisor = Supervisor(
            load_order(settings.model, self._models),
            pull_arguments,
            self._mailbox.post,
            clock,
            worker_command,
            LastGood(self._last_good),
        )
        self._connection = connect(
            base.mqtt,
            f"edged-{topics.fleet}-{device}",
            Will(topics.status, b"offline"),
            subscriptions(topics),
            self._mailbox.post_from_link,
        )
        self._outbound = Outbound(self._connection, self._delivered, clock)
        self._link = BrokerLink(self._connection, self._outbound)
        self._home_assistant = HomeAssistant(topics, prefix, self._outbound, state_dir / "home_assistant.json")
        self._replies = Replies(self._outbound, self._wall)
        self._queue = PromptQueue(
            self._journal,
            self._replies,
            self._supervisor,
            self._config,
            device,
            clock,
            self._wall,
            self._wall.reliable,
        )
        stored = (self._journal, self._queue, self._replies, self._outbound)
        self._maintenance = JournalMaintenance(*stored, self._wall, self._config, clock())
        self._reporter = Reporter(topics, self._outbound, self._health_documents, boot, clock, self._wall)
        self._files = FileFindings(self._journal, state_dir, base.mqtt.password_file, self._reporter.event)
        self._config_updates = ConfigUpdates(
            self._config, topics, self._outbound, self._reporter, self._use_settings, self._wall
        )
        self._trials = TrialRunner(
            self._config,
            self._config_updates,
            self._supervisor,
            self._queue,
            pull_arguments,
            self._models,
            self._mailbox.post,
            clock,
            self._wall,
        )
        self._receiver = ModelReceiver(
            topics,
            base.identity.groups,
            self._config,
            self._link,
            self._outbound,
            self._reporter,
            pull_arguments,
            state_dir / "models",
            self._mailbox.post,
            clock,
            self._wall,
        )
        self._shutdown = Shutdown(self._queue, self._reporter, self._notifier, clock)
        self._admission = Admission(
            topics,
            self._journal,
            self._queue,
            self._replies,
            self._config,
            self._unavailable,
            self._reporter.bad_request,
            clock,
            self._wall,
            self._wall.reliable,
            self._execute,
        )
        self._pools = Pools(
            topics,
            base.mqtt,
            self._admission,
            self._outbound,
            connect,
            self._mailbox.post_from_pool,
            self._member_facts,
            lambda: self._link.state.version,
        )
        self._health = HealthSource(
            config=self._config,
            supervisor=self._supervisor,
            queue=self._queue,
            admission=self._admission,
            reporter=self._reporter,
            link=self._link,
            outbound=self._outbound,
            maintenance=self._maintenance,
            files=self._files,
            drain=self._drain,
            pools=self._pools,
            telemetry=self._telemetry,
            mailbox=self._mailbox,
            wall=self._wall,
        )
        self._dispatcher = Dispatcher(
            topics=topics,
            admission=self._admission,
            queue=self._queue,
            supervisor=self._supervisor,
            config_updates=self._config_updates,
            trials=self._trials,
            receiver=self._receiver,
            reporter=self._reporter,
            health=self._health,
            link=self._link,
            outbound=self._outbound,
            maintenance=self._maintenance,
            telemetry=self._telemetry,
            wall=self._wall,
            home_assistant=self._home_assistant,
            drain=self._drain,
            pools=self._pools,
            shutdown=self._shutdown,
        )
        self._idle = IdleModel(
            self._supervisor, self._queue, self._trials, self._config, clock, self._dispatcher.publish_model_state
        )
        self._commands = Commands(
            queue=self._queue,
            supervisor=self._supervisor,
            trials=self._trials,
            idle=self._idle,
            drain=self._drain,
            config=self._config,
            read_file=read_file or (lambda: own),
            on_settings=self._use_settings,
            apply=self._dispatcher.apply,
            changed=self._dispatcher.publish_model_state,
            diagnostics=self._diagnostics,
        )
        self._upkeep_of_models = ModelUpkeep(self._slots, self._supervisor, self._trials, self._config, pull_arguments)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._mailbox.post(StopRequested()))
        self._start()
        while not self._shutdown.complete:
            self._dispatcher.process(self._wait())
            self._upkeep()
        self._stop()
        return 0

    def _start(self) -> None:
        self._journal.open()
        self._wall.start_from(self._journal.fact("wall_floor", 0.0))
        self._wall.set_synchronized(clock_state(Path("/")).synced)
        self._drain.load()
        self._queue.restore(self._journal.open_entries())
        self._reporter.set_status(self._drain.status("starting"))
        identity = {"device": self._topics.device, "fleet": self._topics.fleet}
        self._log.info("started", pid=os.getpid(), **identity, open_prompts=self._queue.open)
        self._home_assistant.load()
        self._files.check(self._config.damage, self._config.trust.damage)
        self._connection.start()
        self._dispatcher.apply(self._supervisor.start())
        self._telemetry.start()
        self._notifier.ready()

    def _wait(self) -> list[Event]:
        """The events that wait in the mailbox; none when something is due first."""
        due = [
            self._supervisor.next_tick(),
            self._trials.next_tick(),
            self._idle.next_tick(),
            self._receiver.next_tick(),
            self._queue.next_deadline(),
            self._clock() + 1.0,
            self._shutdown.deadline,
        ]
        timeout = max(0.0, min(moment for moment in due if moment is not None) - self._clock())
        return self._mailbox.get(timeout)

    def _upkeep(self) -> None:
        """What is due in each turn of the loop."""
        now = self._clock()
        stalled, self._turn_at = now - self._turn_at > _STALL, now
        self._queue.tick()
        self._dispatcher.apply(self._supervisor.tick(stalled=stalled))
        self._dispatcher.apply(self._trials.tick())
        self._receiver.tick()
        if not self._shutdown.requested:
            self._upkeep_of_models.tick()
            self._dispatcher.apply(self._idle.tick())
        if not stalled:
            self._link.check_progress()
        self._link.acknowledge()
        if self._maintenance.turn(now) | self._files.check() | self._pools.tick():
            self._health.update()
        self._reporter.check_health()
        self._notifier.status(f"model {self._supervisor.state}, {self._link.down_reason or 'connected'}")
        self._keep_alive()

    def _keep_alive(self) -> None:
        ages = {"link": self._connection.idle_for(), "telemetry": self._telemetry.busy_for()}
        stalled_loop = self._notifier.keep_alive(ages)
        if stalled_loop is not None and stalled_loop != self._stalled_loop:
            self._log.error("a loop stalled; watchdog keep-alive stopped", loop=stalled_loop)
        self._stalled_loop = stalled_loop

    def _stop(self) -> None:
        self._telemetry.stop()
        self._pools.stop()
        self._trials.stop()
        self._receiver.stop()
        self._supervisor.stop()
        self._reporter.set_status("offline")
        self._flush()
        self._connection.stop()
        self._journal.close()
        self._log.info("stopped", open_prompts=self._queue.open)

    def _flush(self) -> None:
        """Wait a little for the broker to acknowledge what was published."""
        until = self._clock() + FLUSH_SECONDS
        while self._outbound.backlog and self._link.down_reason is None and self._clock() < until:
            for event in self._mailbox.get(max(0.0, until - self._clock())):
                if isinstance(event, Acked):
                    self._link.process_acked(event)

    def _delivered(self, token: object) -> None:
        if isinstance(token, Withdrawn):
            self._home_assistant.withdrawn(token.topic)
        else:
            self._maintenance.delivered(token)

    def _health_documents(self) -> HealthDocuments:
        return self._health.documents()

    def _unavailable(self) -> str | None:
        """Why no prompt is accepted now."""
        if self._shutdown.requested:
            return "the device is stopping; send the prompt again when its status is online"
        failure = self._supervisor.unusable
        return self._drain.unavailable if failure is None else f"no usable model: {failure.message}"

    def _member_facts(self) -> MemberFacts:
        """What decides whether the device is a member of its pools now."""
        return MemberFacts(
            connected=self._link.down_reason is None,
            unavailable=self._unavailable(),
            online=self._supervisor.state == "online",
            trial=self._trials.active or self._trials.waiting,
            findings=tuple(finding.code for finding in self._reporter.findings),
            open=self._queue.open,
            limit=self._config.in_force.settings.limits.queue,
        )

    def _execute(self, name: CommandName) -> Done:
        return self._commands.execute(name)

    def _diagnostics(self) -> Done:
        """The archive in base64. Raises CommandRefused where it is too large."""
        report, now = self._config.report, self._wall()
        reported = {"phase": report.phase, "layer": report.layer, "revision": report.revision}
        facts = {"device": self._topics.device, "fleet": self._topics.fleet, "boot": self._boot}
        contents = diagnostics.files(
            self._config.in_force.settings,
            {**reported, "in_force": dict(self._config.in_force.revisions)},
            self._reporter.health_document(),
            logs.recent(),
            self._supervisor.info,
            facts,
        )
        packed = diagnostics.archive(contents, now)
        text, encoded = f"a .tar.gz of {len(packed)} bytes with {', '.join(contents)}", diagnostics.encoded(packed)
        final = bytes(diagnostics.AROUND) + encoded.encode()
        if len(packed) > diagnostics.MAX_BYTES or not self._outbound.fits(self._topics.own, final, None):
            why = f"the archive has {len(packed)} bytes, more than edged or the broker allows; read the device's log"
            raise CommandRefused("failed", "too_large", why)
        return Done(text, encoded)

    def _last_good(self) -> tuple[Load, ...]:
        """What is loaded where the model in force cannot be."""
        models = self._slots.slots.instead_of(self._config.in_force.settings.model)
        return tuple(load_order(model, self._models) for model in models)

    def _use_settings(self, settings: Settings) -> None:
        """Settings that take effect outside the parts that read them at each use."""
        self._telemetry.set_interval(settings.telemetry.interval)
        logs.configure(settings.log.level, settings.log.format)
