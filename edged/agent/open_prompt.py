"""A ticket: one open prompt on its way. Mutable, owned by the desk alone."""

from __future__ import annotations

from dataclasses import dataclass

from edged.agent.journal import Job
from edged.core.prompt import Reason


@dataclass
class Ticket:
    """One open prompt. `shown` is the number of code points that went out as chunks."""

    seq: int
    job: Job
    body: bytes
    deaths: int
    arrived: float
    expires: float | None
    given: bool = False
    preparing: bool = False
    began: float | None = None
    first: float | None = None
    text: str = ""
    shown: int = 0
    chunks: int = 0
    last_chunk: float | None = None
    ending: Reason | None = None
    """`cancelled` or `expired` while the worker is asked to stop."""
    unstored: tuple[Reason, bytes] | None = None
    """Its final, which the journal could not take yet."""

    @property
    def suspect(self) -> bool:
        """Whether it may be why the worker died just now."""
        return self.given and (self.preparing or self.began is not None)

    @property
    def order(self) -> tuple[int, int]:
        """Best first."""
        return self.job.request.priority, self.seq
