"""Running means of speed and length of finished answers, for estimates and telemetry. Owned by the prompt queue."""

from __future__ import annotations

from dataclasses import dataclass

_SMOOTHING = 0.3  # weight of the newest answer in the running means


@dataclass
class MeasuredSpeed:
    """Running means of finished answers; None until one was measured."""

    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    tokens: float | None = None

    def add(self, tokens_per_second: float | None, ttft_ms: float | None, tokens: int) -> None:
        """Add one finished answer to the means."""
        self.tokens_per_second = _blend(self.tokens_per_second, tokens_per_second)
        self.ttft_ms = _blend(self.ttft_ms, ttft_ms)
        self.tokens = _blend(self.tokens, float(tokens))

    def until_begun(self, ahead: int, slots: int) -> float | None:
        """Seconds until one of `slots` sequences that are computed at a time is free after `ahead` others.

        The rate is that of one sequence beside others, so `slots` of them are computed at `slots` times this rate.
        None until an answer was measured.
        """
        if not self.tokens_per_second or self.tokens is None:
            return None
        return max(0, ahead + 1 - slots) * self.tokens / (self.tokens_per_second * slots)


@dataclass
class EstimateError:
    """By how much estimated waits were wrong: `total` is the sum of the differences without their sign, in seconds."""

    count: int = 0
    total: float = 0.0

    @property
    def mean_error(self) -> float:
        """Seconds; 0 before any."""
        return self.total / self.count if self.count else 0.0

    def add(self, estimated: float, waited: float) -> None:
        """Compare one estimate with what was."""
        self.count += 1
        self.total += abs(estimated - waited)


def _blend(mean: float | None, newest: float | None) -> float | None:
    if newest is None:
        return mean
    return newest if mean is None else mean + _SMOOTHING * (newest - mean)
