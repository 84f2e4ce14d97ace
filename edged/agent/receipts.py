"""What a final says beside its text: how long things took, and by which model and config it was made."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.agent.journal import Job
from edged.agent.open_prompt import OpenPrompt
from edged.core.prompt import Final, ModelInfo
from edged.wire import replies as wire


@dataclass
class Context:
    """What a receipt needs to know beside the worker: who we are and which config is in force."""

    device: str
    config: dict[str, int] = field(default_factory=dict)
    throttled: bool | None = None


def timing(prompt: OpenPrompt, now: float, final: Final | None) -> wire.Timing:
    """Milliseconds since the prompt arrived; `now` is monotonic. `final` None: the worker did not end it."""
    began = prompt.started_at if prompt.started_at is not None else now
    rate = speed(final)
    return wire.Timing(
        queue_ms=_rounded((began - prompt.arrived) * 1000),
        ttft_ms=None if prompt.first_token_at is None else _rounded((prompt.first_token_at - prompt.arrived) * 1000),
        total_ms=_rounded((now - prompt.arrived) * 1000),
        tokens_per_second=None if rate is None else _rounded(rate),
    )


def speed(final: Final | None) -> float | None:
    """Tokens a second after the first; None where there were none."""
    if final is None or final.usage.completion_tokens <= 1 or final.decode_ms <= 0:
        return None
    return (final.usage.completion_tokens - 1) / final.decode_ms * 1000


def receipt(job: Job, info: ModelInfo | None, context: Context, final: Final | None) -> wire.Receipt | None:
    """None where no model was loaded. The config is the one that the prompt was accepted under."""
    if info is None:
        return None
    return wire.Receipt(
        device=context.device,
        model=info.name,
        digest=info.digest,
        quantization=info.quantization,
        backend=info.backend,
        config=context.config if job.config is None else job.config,
        seed=final.seed if final is not None else job.request.sampling.seed,
        throttled=context.throttled,
    )


def _rounded(value: float) -> float:
    return round(max(0.0, value), 1)
