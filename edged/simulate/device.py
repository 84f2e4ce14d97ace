"""One simulated device: the real desired config, trials, reports and connection. Owned by the simulator's loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from edged.agent.broker_link import BrokerLink, subscriptions
from edged.agent.config_updates import ConfigUpdates
from edged.agent.prompt_queue import PromptQueue
from edged.agent.reporter import Reporter
from edged.agent.supervisor import Supervisor, load_order
from edged.agent.trial_runner import TrialRunner
from edged.config.schema import build
from edged.fleet.desired import DesiredConfig
from edged.link.attempt import Will
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Event, Up
from edged.link.outbound import Outbound
from edged.simulate.instant_model import InstantSupervisor, NoPrompts
from edged.simulate.traffic import CountedConnection, Traffic
from edged.wire import documents
from edged.wire.topics import Topics
from edged.worker.client import WorkerEvent

Post = Callable[["SimulatedDevice", Any], None]
_NO_QUEUE = documents.Queue(0, 0, 0, 0, 0, 0, 0)
_NO_SPEED = documents.Speed(None, None)


class SimulatedDevice:
    """See the module. `post` puts an event into the simulator's queue; it may be called from any thread.

    `tries` counts the trials that were begun, `up_at` is the monotonic time of the last connect (None: not connected).
    """

    def __init__(self, own: dict[str, Any], folder: Path, post: Post, traffic: Traffic) -> None:
        settings = build(own)
        self.name = str(settings.identity.device)
        self.up_at: float | None = None
        self.tries = 0
        topics = Topics(settings.identity.fleet, self.name, settings.identity.groups)
        self._topics = topics
        self._traffic = traffic
        folder.mkdir(parents=True, exist_ok=True)
        self.config = DesiredConfig(own, topics, folder / "layers.json")
        self._connection = Connection(
            settings.mqtt,
            f"edged-{topics.fleet}-{self.name}",
            Will(topics.status, b"offline"),
            subscriptions(topics),
            lambda event: post(self, event),
        )
        self._outbound = Outbound(CountedConnection(self._connection, traffic), lambda _token: None, time.monotonic)
        self._link = BrokerLink(self._connection, self._outbound)
        self._reporter = Reporter(topics, self._outbound, self._state, "simulated", time.monotonic, time.time)
        updates = ConfigUpdates(self.config, topics, self._outbound, self._reporter, lambda _settings: None, time.time)
        self._updates = updates
        supervisor = InstantSupervisor(
            load_order(self.config.in_force.settings.model, folder), lambda event: post(self, event)
        )
        self._supervisor = supervisor
        self._trials = TrialRunner(
            self.config,
            updates,
            cast("Supervisor", supervisor),
            cast("PromptQueue", NoPrompts()),
            (),
            folder,
            lambda event: post(self, event),
            time.monotonic,
            time.time,
            available=lambda: 1 << 40,
        )

    def start(self) -> None:
        """Read what is stored and begin to connect."""
        self.config.load(time.time())
        self._reporter.set_status("online")
        self._connection.start()

    def stop(self) -> None:
        """Disconnect."""
        self._connection.stop()

    def process(self, event: Event | WorkerEvent) -> None:
        """One event of the connection or of the instant model."""
        before = self.on_trial
        match event:
            case Up():
                self._process_up(event)
            case Down():
                self._link.process_down(event)
                self._reporter.connection_lost()
                self.up_at = None
                self._trials.link_changed(up=False)
            case Acked():
                self._link.process_acked(event)
            case Arrived():
                self._process_message(event)
            case WorkerEvent():
                self._trials.process_worker(event)
        self.tries += self.on_trial and not before

    def tick(self) -> None:
        """What is due."""
        before = self.on_trial
        self._trials.tick()
        self.tries += self.on_trial and not before
        self._link.check_progress()

    # ---- for any thread ---------------------------------------------------------------------------------------------

    @property
    def on_trial(self) -> bool:
        """Whether a trial runs."""
        return self._trials.active

    @property
    def connects(self) -> int:
        """How often it has connected."""
        return self._link.state.connects

    def settled(self) -> bool:
        """Whether it is connected, and the broker has all that it published."""
        return self.up_at is not None and self._outbound.backlog == 0

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _process_up(self, event: Up) -> None:
        self._link.process_up(event)
        self.up_at = time.monotonic()
        self._reporter.connected()
        self._updates.publish_report()
        self._updates.publish_history()
        self._trials.link_changed(up=True)

    def _process_message(self, message: Arrived) -> None:
        self._traffic.received(message.topic, message.payload)
        inbound = self._topics.parse(message.topic)
        if inbound is not None and inbound.kind == "config":
            self._trials.process_push(inbound.name, message.payload)
        elif inbound is not None and inbound.kind == "status" and message.payload == b"offline":
            self._reporter.publish_status()
        elif inbound is not None and inbound.kind in {"prompt", "cancel", "command"}:
            self._reporter.bad_request("a simulated device answers no prompts")
        self._link.processed(message)
        self._link.acknowledge()

    def _state(self) -> tuple[documents.LinkState, documents.ModelState, documents.Queue, documents.Speed]:
        info = self._supervisor.info
        return self._link.state, documents.ModelState("online", info.name, info, loaded=True), _NO_QUEUE, _NO_SPEED
