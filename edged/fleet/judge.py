"""What is quick to see of an answer to a golden prompt. What a match may take long for: `expectation`."""

from __future__ import annotations

from typing import Final

from edged.config import checks
from edged.core.golden import Contains, Golden
from edged.core.prompt import Final as Answer

QUOTED: Final = 200
"""Characters of a prompt or an answer that a report quotes."""


def decode_rate(answer: Answer) -> float | None:
    """Tokens per second after the first; None for fewer than two tokens."""
    if answer.usage.completion_tokens <= 1 or answer.decode_ms <= 0:
        return None
    return round((answer.usage.completion_tokens - 1) / answer.decode_ms * 1000, 1)


def fault(golden: Golden, answer: Answer, took: float) -> str | None:
    """Why this answer is not good enough, as far as that is quick to see; None: nothing was found."""
    if answer.reason not in {"stop", "length"}:
        failure = f" ({answer.failure.message})" if answer.failure else ""
        return f"which ended as {answer.reason}{failure}"
    if golden.within is not None and took > golden.within:
        return f"after {took:.1f} s, above {checks.show_duration(golden.within)}"
    rate, wanted = decode_rate(answer), golden.min_tokens_per_second
    if wanted is not None and (rate is None or rate < wanted):
        measured = "too few tokens to measure the speed" if rate is None else f"{rate:g} tokens per second"
        return f"with {measured}, below {wanted:g}"
    match golden.expect:
        case None:
            return None if answer.text.strip() else "which is empty"
        case Contains(texts=texts) if not any(text.casefold() in answer.text.casefold() for text in texts):
            return f"which does not contain {' or '.join(quote(text, 60) for text in texts[:4])}"
    return None


def quote(text: str, most: int = QUOTED) -> str:
    """A text on one line, cut, in quotes."""
    line = " ".join(text.split())
    return f'"{line[:most]}{"…" if len(line) > most else ""}"'
