"""What the health, telemetry and event topics need of the agent's state, read from its owners when it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.agent.admission import Admission
from edged.agent.broker_link import BrokerLink
from edged.agent.drain import Drain
from edged.agent.file_findings import FileFindings
from edged.agent.findings import agent_findings
from edged.agent.journal_maintenance import JournalMaintenance
from edged.agent.mailbox import Mailbox
from edged.agent.pools import Pools
from edged.agent.prompt_queue import PromptQueue
from edged.agent.reporter import Reporter
from edged.agent.supervisor import Supervisor
from edged.agent.telemetry_thread import TelemetryThread
from edged.core.health import Finding
from edged.fleet.desired import DesiredConfig
from edged.link.outbound import Outbound
from edged.wire import documents

HealthDocuments = tuple[documents.LinkState, documents.ModelState, documents.Queue, documents.Speed]


@dataclass(frozen=True)
class HealthSource:
    """Owned by the agent's main thread; changes nothing but the reporter's findings."""

    config: DesiredConfig
    supervisor: Supervisor
    queue: PromptQueue
    admission: Admission
    reporter: Reporter
    link: BrokerLink
    outbound: Outbound
    maintenance: JournalMaintenance
    files: FileFindings
    drain: Drain
    pools: Pools
    telemetry: TelemetryThread
    mailbox: Mailbox
    wall: Callable[[], float]

    def update(self) -> None:
        """Hand the findings that hold now to the reporter."""
        self.reporter.set_findings(self.findings())

    def findings(self) -> tuple[Finding, ...]:
        """Those of the board, of the agent itself and of its files."""
        own = agent_findings(
            self.supervisor.unusable,
            self.link.refused_topics,
            self.outbound.refused_topic,
            self.maintenance.write_error,
            self.wall(),
            self.reporter.findings,
            broker_excess=self.link.excess,
            fallback=self.supervisor.fallback,
            template_problem=self.supervisor.info.template_problem if self.supervisor.info else "",
        )
        files = self.files.findings(self.wall(), self.reporter.findings)
        drained = self.drain.findings(self.wall(), self.reporter.findings)
        pools = self.pools.findings(self.wall(), self.reporter.findings)
        return self.telemetry.findings + own + files + drained + pools

    def documents(self) -> HealthDocuments:
        """The parts of the documents that the reporter publishes."""
        queue, speed = self.queue, self.queue.speed
        counts = documents.Queue(
            open=queue.open,
            running=queue.running,
            limit=self.config.in_force.settings.limits.queue,
            answered=queue.finished,
            refused=self.admission.refused,
            bad_requests=self.reporter.bad_requests,
            dropped=self.mailbox.dropped + self.outbound.dropped,
        )
        means = documents.Speed(speed.tokens_per_second, speed.ttft_ms)
        return self.link.state, self.supervisor.document(), counts, means
