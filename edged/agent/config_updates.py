"""Carries out what the fleet's desired config decided about a push: put in force, log, publish.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.agent import logs
from edged.agent.reporter import Reporter
from edged.config.schema import Settings
from edged.fleet.desired import DesiredConfig, Update
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire.layers import reported


class ConfigUpdates:
    """`on_settings` gets the settings in force after a push that was judged. `topic` is that of the reported state."""

    def __init__(
        self,
        config: DesiredConfig,
        topic: str,
        outbound: Outbound,
        reporter: Reporter,
        on_settings: Callable[[Settings], None],
        wall: Callable[[], float],
    ) -> None:
        self._config = config
        self._topic = topic
        self._outbound = outbound
        self._reporter = reporter
        self._on_settings = on_settings
        self._wall = wall
        self._log = logs.logger()

    def process_push(self, name: str, payload: bytes) -> None:
        """A layer was pushed, or removed with an empty payload."""
        update = self._config.apply(name, payload, self._wall())
        if update is not None:
            self._carry_out(update)

    def process_unreadable(self, name: str, why: str) -> None:
        """A push to a layer could not be read."""
        self._carry_out(self._config.reject(name, why, self._wall()))

    def publish_report(self) -> None:
        """Publish the reported state: what is in force, and what became of the last push."""
        payload = reported(self._config.report, self._wall())
        self._outbound.send(Publication(topic=self._topic, payload=payload, retain=True))

    def _carry_out(self, update: Update) -> None:
        if update.storage_error is not None:
            self._log.error("the state of config layers cannot be stored", error=update.storage_error)
        self._on_settings(self._config.in_force.settings)
        layer, report = update.layer, update.report
        log = self._log.warning if report.phase == "rejected" else self._log.info
        log("config push", phase=report.phase, layer=layer, revision=report.revision, reason=report.reason)
        message = f"{layer}: {report.reason}"
        self._reporter.event(f"config_{report.phase}", message, layer=layer, revision=report.revision)
        self.publish_report()
