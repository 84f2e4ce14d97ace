"""The end of the daemon: new prompts are refused, running ones have some seconds to finish, the rest stays stored.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.agent import logs
from edged.agent.prompt_queue import PromptQueue
from edged.agent.reporter import Reporter
from edged.agent.systemd import Notifier

DRAIN_SECONDS = 8.0


class Shutdown:
    """See the module. `deadline` is the monotonic time at which running prompts are no longer waited for."""

    def __init__(self, queue: PromptQueue, reporter: Reporter, notifier: Notifier, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._reporter = reporter
        self._notifier = notifier
        self._clock = clock
        self._log = logs.logger()
        self.deadline: float | None = None

    @property
    def requested(self) -> bool:
        """Whether the daemon was asked to stop."""
        return self.deadline is not None

    @property
    def complete(self) -> bool:
        """Whether nothing runs any more, or the time for that is over."""
        if self.deadline is None:
            return False
        return self._queue.running == 0 or self._clock() >= self.deadline

    def begin(self) -> None:
        """Stop accepting prompts, and let running ones finish."""
        if self.requested:
            return
        self.deadline = self._clock() + DRAIN_SECONDS
        self._notifier.stopping()
        self._log.info("stopping", running=self._queue.running)
        self._queue.drain()
        self._reporter.set_status("draining")
