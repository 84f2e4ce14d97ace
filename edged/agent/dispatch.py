"""Which part of the agent processes which event. Owned by the agent's main thread.

Events are processed in the order of their arrival; prompts that arrive one after the other are one batch, stored in one
transaction. The topic of each message is parsed once, here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.agent import logs
from edged.agent.admission import Admission
from edged.agent.broker_link import BrokerLink
from edged.agent.config_updates import ConfigUpdates
from edged.agent.drain import Drain
from edged.agent.events import Event, FromPool, StopRequested
from edged.agent.expectation_check import ExpectationChecked
from edged.agent.health_source import HealthSource
from edged.agent.home_assistant import HomeAssistant
from edged.agent.journal_maintenance import JournalMaintenance
from edged.agent.model_pull import PullEnded, PullProgress
from edged.agent.model_receiver import ModelReceiver
from edged.agent.model_state import EnteredSafe, FellBack, LoadProgress, ModelReady, Outcome, PromptProgress, WorkerLost
from edged.agent.model_writer import PartClosed, PartEvent, PartFailed, PartOpened, PartWritten
from edged.agent.pools import Pools
from edged.agent.prompt_queue import PromptQueue
from edged.agent.reporter import Reporter
from edged.agent.shutdown import Shutdown
from edged.agent.supervisor import Supervisor
from edged.agent.telemetry_thread import TelemetryThread
from edged.agent.trial_runner import TrialRunner
from edged.agent.wall_clock import WallClock
from edged.core.prompt import ModelInfo
from edged.core.reading import Reading
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire.topics import Inbound, Topics
from edged.worker.client import WorkerEvent

ChildEvent = WorkerEvent | PullEnded | PullProgress | ExpectationChecked
OtherEvent = Up | Down | Acked | Reading | ChildEvent | PartEvent | StopRequested | FromPool


@dataclass(frozen=True)
class Dispatcher:
    """See the module. `process` takes events of the mailbox, `apply` what the supervisor returned."""

    topics: Topics
    admission: Admission
    queue: PromptQueue
    supervisor: Supervisor
    config_updates: ConfigUpdates
    trials: TrialRunner
    receiver: ModelReceiver
    reporter: Reporter
    health: HealthSource
    link: BrokerLink
    outbound: Outbound
    maintenance: JournalMaintenance
    telemetry: TelemetryThread
    wall: WallClock
    home_assistant: HomeAssistant
    drain: Drain
    pools: Pools
    shutdown: Shutdown
    log: logs.Logger = field(default_factory=logs.logger)

    def process(self, events: Iterable[Event]) -> None:
        """Process events in order."""
        prompts: list[tuple[str, Arrived]] = []
        for event in events:
            inbound = self.topics.parse(event.topic) if isinstance(event, Arrived) else None
            if isinstance(event, Arrived) and inbound is not None and self._is_prompt(event, inbound):
                prompts.append((inbound.name, event))
                continue
            self._process_prompts(prompts)
            prompts = []
            if isinstance(event, Arrived):
                self._process_message(event, inbound)
            else:
                self._process_event(event)
        self._process_prompts(prompts)

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _is_prompt(self, message: Arrived, inbound: Inbound) -> bool:
        """Whether admission decides about it. 3.1.1 does not show whether a retained prompt was sent just now."""
        stale = message.retain and self.link.state.version == "3.1.1"
        return inbound.kind == "prompt" and message.unreadable is None and not stale

    def _process_prompts(self, prompts: list[tuple[str, Arrived]]) -> None:
        if not prompts:
            return
        try:
            answers = self.admission.process_prompts(prompts)
        except sqlite3.Error:
            # Not acknowledged: the broker sends them again after the reconnect, when the journal may be repaired.
            self.link.redeliver("the journal cannot be read")
            return
        for (_, message), answer in zip(prompts, answers, strict=True):
            self.link.processed(message, answer)

    def _process_message(self, message: Arrived, inbound: Inbound | None) -> None:
        answer: Publication | None = None
        if message.unreadable is not None:
            answer = self._process_unreadable(message, inbound, message.unreadable)
        else:
            match inbound:
                case Inbound("prompt", _):
                    self.reporter.bad_request("a retained prompt was ignored; publish prompts without retain")
                case Inbound("cancel", requester):
                    self.admission.process_cancel(requester, message)
                case Inbound("command", requester):
                    try:
                        answer = self.admission.process_command(requester, message)
                    except sqlite3.Error:
                        self.link.redeliver("the journal cannot be read")
                        return
                case Inbound("config", layer):
                    self.apply(self.trials.process_push(layer, message.payload))
                case Inbound("model", rest):
                    self.receiver.process_message(rest, message.topic, message.payload)
                case Inbound("status", _) if message.payload == b"offline" and self.reporter.status != "offline":
                    self.reporter.publish_status()  # the will of an earlier connection came late
                case Inbound("birth", _) if message.payload == b"online":
                    self.home_assistant.announce()
        self.link.processed(message, answer)

    def _process_unreadable(self, message: Arrived, inbound: Inbound | None, why: str) -> Publication | None:
        match inbound:
            case Inbound("prompt" | "command", requester):
                return self.admission.process_unreadable(requester, message, why)
            case Inbound("config", layer):
                self.config_updates.process_unreadable(layer, why)
            case _:
                self.reporter.bad_request(f"a message to {message.topic} was ignored: {why}")
        return None

    # ---- other events -----------------------------------------------------------------------------------------------

    def _process_event(self, event: OtherEvent) -> None:
        match event:
            case WorkerEvent() | PullEnded() | PullProgress() | ExpectationChecked():
                self._process_child(event)
            case PartOpened() | PartWritten() | PartClosed() | PartFailed():
                self.receiver.process_part(event)
            case Acked():
                self._process_acked(event)
            case Up():
                self._process_up(event)
            case Down():
                self._process_down(event)
            case Reading():
                self._process_reading(event)
            case StopRequested():
                self.shutdown.begin()
            case FromPool():
                self.pools.process(event)

    def _process_child(self, event: ChildEvent) -> None:
        """News of a child process: of the trial, of a received model, else of the supervisor."""
        match event:
            case ExpectationChecked():
                self.apply(self.trials.process_checked(event))
            case WorkerEvent():
                outcomes = self.trials.process_worker(event)
                self.apply(self.supervisor.process_worker(event) if outcomes is None else outcomes)
            case PullEnded():
                self._process_pull(event)
            case PullProgress():
                self.apply(self.trials.process_pull(event) or ())

    def _process_pull(self, event: PullEnded) -> None:
        if self.receiver.process_pull(event):
            return
        outcomes = self.trials.process_pull(event)
        self.apply(self.supervisor.process_pull(event) if outcomes is None else outcomes)

    def _process_acked(self, event: Acked) -> None:
        self.link.process_acked(event)
        if event.refused is not None:
            topic = self.outbound.refused_topic
            self.log.warning("the broker refused a publication", topic=topic, reason=event.refused)
            self.health.update()

    def _process_up(self, event: Up) -> None:
        self.link.process_up(event)
        self.log.info("connected", mqtt=event.version, refused=list(event.refused) or None)
        self.reporter.connected()
        self.config_updates.publish_report()
        self.config_updates.publish_history()
        self.home_assistant.announce()
        self.health.update()
        self.maintenance.resend()
        self.receiver.connected()
        self.apply(self.trials.link_changed(up=True))

    def _process_down(self, event: Down) -> None:
        self.link.process_down(event)
        self.reporter.connection_lost()
        self.log.warning("not connected", reason=event.reason, retry_in_s=round(event.retry_in, 1))
        if event.taken_over:
            self.reporter.event("name_taken", event.reason)
        self.apply(self.trials.link_changed(up=False))

    def _process_reading(self, reading: Reading) -> None:
        self.wall.set_synchronized(reading.clock_synced)
        self.queue.set_throttled(reading.throttled)
        self.reporter.publish_reading(reading, self.health.findings())

    # ---- the model --------------------------------------------------------------------------------------------------

    def apply(self, outcomes: Iterable[Outcome]) -> None:
        """Carry out what follows from what happened to the worker."""
        for outcome in outcomes:
            match outcome:
                case PromptProgress(frame=frame):
                    self.queue.process_frame(frame)
                case LoadProgress(doing=doing):
                    self.log.info("loading the model", step=doing)
                    self.publish_model_state()
                case ModelReady(info=info):
                    self.publish_model_state()
                    self._model_ready(info)
                    self.apply(self.trials.model_settled())
                case FellBack(failure=failure, source=source):
                    self.log.error("the last good model is used", reason=failure.message, model=source)
                    self.publish_model_state()
                case EnteredSafe(failure=failure):
                    self.log.error("no usable model", code=failure.code, reason=failure.message)
                    self.queue.refuse_all(failure.message)
                    self.publish_model_state()
                    self.apply(self.trials.model_settled())
                case WorkerLost(how=how):
                    self.log.warning("the worker process ended", how=how, prompts=self.queue.submitted)
                    self.reporter.event("worker_died", f"the worker process {how}; it is started again")
                    self.queue.worker_exited(how)
                    self.publish_model_state()
                    self.apply(self.trials.worker_lost(how))

    def _model_ready(self, info: ModelInfo) -> None:
        self.log.info("model loaded", model=info.name, computes=info.quantization, backend=info.backend)
        if info.fallback:
            self.log.warning("the native engine does not run this model; torch does", reason=info.fallback)
        if not self.shutdown.requested:
            self.queue.submit_waiting()

    def publish_model_state(self) -> None:
        """Publish what changed about the worker."""
        self.telemetry.set_worker(self.supervisor.pid)
        if not self.shutdown.requested:
            self.reporter.set_status(self.drain.status(self.supervisor.state))
        self.health.update()
