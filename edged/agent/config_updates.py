"""Carries out what the fleet's desired config decided about a push: put in force, log, publish.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.agent import logs
from edged.agent.reporter import Reporter
from edged.config.schema import Settings
from edged.fleet.desired import DesiredConfig, Postponed, TrialOrder, Update
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire.layers import history, reported
from edged.wire.topics import Topics


class ConfigUpdates:
    """`on_settings` gets the settings in force after a push that was judged."""

    def __init__(
        self,
        config: DesiredConfig,
        topics: Topics,
        outbound: Outbound,
        reporter: Reporter,
        on_settings: Callable[[Settings], None],
        wall: Callable[[], float],
    ) -> None:
        self._config = config
        self._topics = topics
        self._outbound = outbound
        self._reporter = reporter
        self._on_settings = on_settings
        self._wall = wall
        self._log = logs.logger()

    def process_push(self, name: str, payload: bytes, *, busy: bool = False) -> TrialOrder | Postponed | None:
        """A layer was pushed, or removed with an empty payload; gives what is left to do.

        `busy`: the device has prompts to answer.
        """
        result = self._config.apply(name, payload, self._wall(), busy=busy)
        if isinstance(result, Update):
            self.carry_out(result)
            return None
        return result

    def process_unreadable(self, name: str, why: str) -> None:
        """A push to a layer could not be read."""
        self.carry_out(self._config.reject(name, why, self._wall()))

    def publish_report(self) -> None:
        """Publish the reported state: what is in force, and what became of the last push."""
        payload = reported(self._config.report, self._wall())
        self._outbound.send(Publication(topic=self._topics.reported, payload=payload, retain=True))

    def publish_history(self) -> None:
        """Publish the last decisions."""
        payload = history(self._config.history.decisions, self._wall())
        self._outbound.send(Publication(topic=self._topics.history, payload=payload, retain=True))

    def carry_out(self, update: Update) -> None:
        """Put the settings in force, log and publish what became of a push."""
        if update.storage_error is not None:
            self._log.error("the state of config layers cannot be stored", error=update.storage_error)
        self._on_settings(self._config.in_force.settings)
        layer, report = update.layer, update.report
        log = self._log.info if report.phase in {"applied", "waiting"} else self._log.warning
        log("config push", phase=report.phase, layer=layer, revision=report.revision, reason=report.reason)
        message = f"{layer}: {report.reason}"
        self._reporter.event(f"config_{report.phase}", message, layer=layer, revision=report.revision)
        self.publish_report()
        self.publish_history()
