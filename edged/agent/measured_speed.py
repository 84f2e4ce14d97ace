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


def _blend(mean: float | None, newest: float | None) -> float | None:
    if newest is None:
        return mean
    return newest if mean is None else mean + _SMOOTHING * (newest - mean)
