"""What a final carries beside its text: timing, and by which model and config the answer was computed."""

from __future__ import annotations

from collections.abc import Mapping

from edged.agent.journal import Job
from edged.agent.open_prompt import OpenPrompt
from edged.core.prompt import Final, ModelInfo
from edged.wire import replies as wire


def timing(prompt: OpenPrompt, now: float, final: Final | None) -> wire.Timing:
    """Milliseconds since the prompt arrived; `now` is monotonic. `final` None: the worker did not finish it."""
    started_at = prompt.started_at if prompt.started_at is not None else now
    first_token_at = prompt.first_token_at
    rate = tokens_per_second(final)
    return wire.Timing(
        queue_ms=_rounded((started_at - prompt.arrived) * 1000),
        ttft_ms=None if first_token_at is None else _rounded((first_token_at - prompt.arrived) * 1000),
        total_ms=_rounded((now - prompt.arrived) * 1000),
        tokens_per_second=None if rate is None else _rounded(rate),
    )


def tokens_per_second(final: Final | None) -> float | None:
    """The rate of the decode, after the first token; None for fewer than two tokens."""
    if final is None or final.usage.completion_tokens <= 1 or final.decode_ms <= 0:
        return None
    return (final.usage.completion_tokens - 1) / final.decode_ms * 1000


def receipt(
    job: Job,
    info: ModelInfo | None,
    device: str,
    revisions: Mapping[str, int],
    final: Final | None,
    *,
    throttled: bool | None,
) -> wire.Receipt | None:
    """None where no model was loaded. `revisions` (in force) are used where the job names none."""
    if info is None:
        return None
    return wire.Receipt(
        device=device,
        model=info.name,
        digest=info.digest,
        quantization=info.quantization,
        backend=info.backend,
        config=dict(revisions) if job.config is None else job.config,
        seed=final.seed if final is not None else job.request.sampling.seed,
        throttled=throttled,
        template=(info.template or None) if job.request.raw is None else None,
    )


def _rounded(value: float) -> float:
    return round(max(0.0, value), 1)
