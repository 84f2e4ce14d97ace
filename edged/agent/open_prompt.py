"""The state of one accepted prompt that has no final yet. Mutable, owned by the queue alone."""

from __future__ import annotations

from dataclasses import dataclass

from edged.agent.journal import Job
from edged.core.prompt import Reason


@dataclass
class OpenPrompt:
    """One open prompt. Times are monotonic seconds; `seq` is the journal's sequence number."""

    seq: int
    job: Job
    body: bytes
    crashes: int
    """How often the worker ended while it worked on this prompt."""
    arrived: float
    expires: float | None
    submitted: bool = False
    """Whether the worker has it."""
    level: int = 0
    """How urgent it is there: 0 (first) to 40."""
    estimated_wait: float | None = None
    """In how many seconds it was expected to begin when it arrived; None: not known, or compared already."""
    preparing: bool = False
    started_at: float | None = None
    first_token_at: float | None = None
    text: str = ""
    streamed: int = 0
    """Code points of `text` that were published as chunks."""
    reasoning: str = ""
    reasoning_streamed: int = 0
    chunks: int = 0
    last_chunk_at: float | None = None
    stopping: Reason | None = None
    """`cancelled` or `expired` while the worker is asked to stop."""
    unstored_final: tuple[Reason, bytes] | None = None
    """Its final, which could not be written to the journal yet."""

    @property
    def waits(self) -> bool:
        """Whether its computation has not begun and it has no final."""
        return self.started_at is None and self.unstored_final is None

    @property
    def computing(self) -> bool:
        """Whether the worker prepares or computes it now: if the worker ends, this prompt may be the cause."""
        return self.submitted and (self.preparing or self.started_at is not None)

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from the start of the computation to the first token."""
        if self.first_token_at is None or self.started_at is None:
            return None
        return (self.first_token_at - self.started_at) * 1000

    def reset(self) -> None:
        """Back to waiting: the worker that had it ended, and the next one starts it from the beginning."""
        self.submitted = self.preparing = False
        self.started_at = self.first_token_at = self.last_chunk_at = None
        self.text = self.reasoning = ""
        self.streamed = self.reasoning_streamed = self.chunks = 0
