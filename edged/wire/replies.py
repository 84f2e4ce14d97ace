"""Outgoing replies: types → bytes. Notices, chunks and finals."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, get_args

import msgspec

from edged.core.prompt import Failure, Final, Reason, TokenLogprob, Usage
from edged.wire import strict_json

CONTENT_TYPE = "application/json"


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds; `tokens_per_second` of the decode, None with fewer than two tokens."""

    queue_ms: float
    ttft_ms: float | None
    total_ms: float
    tokens_per_second: float | None


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who computed the answer, with what. `template`: the chat template in use; None: there is none, or raw."""

    device: str
    model: str
    digest: str
    quantization: str
    backend: str
    config: dict[str, int]
    seed: int | None
    throttled: bool | None
    template: str | None = None


_REASONS: dict[str, Reason] = {name: name for name in get_args(Reason)}


def reason(text: str) -> Reason:
    """A final's reason by its name; an unknown one is `failed`."""
    return _REASONS.get(text, "failed")


def rfc3339(moment: float) -> str:
    """A Unix time as UTC text with milliseconds."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def accepted(prompt_id: str, position: int, eta_ms: int | None) -> bytes:
    """The notice that a prompt is safely stored."""
    return strict_json.dumps({"id": prompt_id, "accepted": True, "position": position, "eta_ms": eta_ms})


def conflict(prompt_id: str) -> bytes:
    """The notice that this id was used for another body."""
    message = "another prompt was already sent with this id; use a new id"
    return strict_json.dumps({"id": prompt_id, "conflict": True, "message": message})


def chunk(prompt_id: str, seq: int, at: int, text: str, reasoning: str = "", *, reasoning_at: int = 0) -> bytes:
    """New text, `at` code points after the beginning, and new text of the thought before it, if any."""
    document: dict[str, Any] = {"id": prompt_id, "seq": seq, "at": at, "text": text}
    if reasoning:
        document |= {"reasoning_at": reasoning_at, "reasoning": reasoning}
    return strict_json.dumps(document)


def answer(
    prompt_id: str,
    reason: Reason,
    text: str,
    now: float,
    usage: Usage,
    timing: Timing,
    receipt: Receipt | None,
    failure: Failure | None = None,
    final: Final | None = None,
) -> bytes:
    """A final that carries what was generated (`receipt` None: it never ran), and why that failed.

    `final` is the engine's, for what an answer may have beside its text.
    """
    document: dict[str, Any] = {
        "id": prompt_id,
        "final": True,
        "reason": reason,
        "text": text,
        "ts": rfc3339(now),
        **({} if final is None else _beside_text(final)),
        "usage": msgspec.to_builtins(usage),
        "timing": msgspec.to_builtins(timing),
    }
    if receipt is not None:
        document["receipt"] = msgspec.to_builtins(receipt)
    if failure is not None:
        document["error"] = {"code": failure.code, "message": failure.message}
    return strict_json.dumps(document)


def command_done(prompt_id: str, text: str, now: float, total_ms: float, archive: str | None = None) -> bytes:
    """The final of a command that was carried out, in the form of an answer. `archive`: a .tar.gz in base64."""
    timing = Timing(0.0, None, total_ms, None)
    document: dict[str, Any] = msgspec.json.decode(answer(prompt_id, "stop", text, now, Usage(), timing, None))
    if archive is not None:
        document["archive"] = archive
    return strict_json.dumps(document)


def _beside_text(final: Final) -> dict[str, Any]:
    """Keys of a final that are there only where the prompt asked for them."""
    document: dict[str, Any] = {}
    if final.reasoning is not None:
        document["reasoning"] = final.reasoning
    if final.tool_calls:
        document["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in final.tool_calls
        ]
    if final.embedding is not None:
        document["vectors"] = final.embedding.vectors
        document["pooling"] = final.embedding.pooling
    if final.logprobs:
        document["logprobs"] = [
            {"token": one.token, "logprob": round(one.logprob, 6), "top": [_token(best) for best in one.top]}
            for one in final.logprobs
        ]
    return document


def _token(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "logprob": round(one.logprob, 6)}


def refusal(
    prompt_id: str,
    reason: Reason,
    code: str,
    message: str,
    now: float,
    *,
    retry_after_ms: int | None = None,
    text: str = "",
) -> bytes:
    """A final that carries an error: one code, one sentence that says what to do."""
    document: dict[str, Any] = {
        "id": prompt_id,
        "final": True,
        "reason": reason,
        "text": text,
        "ts": rfc3339(now),
        "error": {"code": code, "message": message},
    }
    if retry_after_ms is not None:
        document["retry_after_ms"] = retry_after_ms
    return strict_json.dumps(document)
