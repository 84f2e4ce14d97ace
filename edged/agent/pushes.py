"""What becomes of a push to a config layer: decided, put in force, logged, told. Owned by the agent's main thread."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent import logs
from edged.agent.reporter import Reporter
from edged.config.schema import Settings
from edged.fleet.desired import DesiredConfig
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire.layers import reported


class Pushes:
    """`put_in_force` gets the settings and the revisions that hold after a push."""

    def __init__(
        self,
        config: DesiredConfig,
        topic: str,
        outbound: Outbound,
        reporter: Reporter,
        put_in_force: Callable[[Settings, dict[str, int]], None],
        wall: Callable[[], float],
    ) -> None:
        self._config = config
        self._topic = topic
        self._outbound = outbound
        self._reporter = reporter
        self._put_in_force = put_in_force
        self._wall = wall
        self._log = logs.logger()

    def take(self, name: str, payload: bytes) -> None:
        """A layer was pushed, or taken away with an empty payload."""
        try:
            if not self._config.take(name, payload, self._wall()):
                return
        except OSError as error:
            self._not_kept(error)
        self._tell(name)

    def refuse(self, name: str, why: str) -> None:
        """A push to a layer could not be read."""
        try:
            self._config.refuse(name, why, self._wall())
        except OSError as error:
            self._not_kept(error)
        self._tell(name)

    def report(self) -> None:
        """Say what is in force, and what became of the last push."""
        payload = reported(self._config.reported, self._wall())
        self._outbound.send(Publication(topic=self._topic, payload=payload, retain=True))

    def _not_kept(self, error: OSError) -> None:
        self._log.error("the layers cannot be kept", error=str(error))

    def _tell(self, name: str) -> None:
        report = self._config.reported
        self._put_in_force(self._config.settings, dict(report.in_force))
        log = self._log.warning if report.phase == "rejected" else self._log.info
        log("config", phase=report.phase, layer=name, revision=report.revision, reason=report.reason)
        self._reporter.event(f"config_{report.phase}", f"{name}: {report.reason}", layer=name, revision=report.revision)
        self.report()
