"""Answers and errors in OpenAI's shape. Shapes: platform.openai.com/docs/api-reference (chat, completions, models)."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from starlette.responses import JSONResponse

from edged.serve.broker import Reply
from edged.serve.fleet_state import number
from edged.serve.prompts import Grown

# The reason of a final → HTTP status, OpenAI's type of error, its code.
ERRORS: Final[dict[str, tuple[int, str, str]]] = {
    "busy": (429, "rate_limit_error", "busy"),
    "too_long": (400, "invalid_request_error", "context_length_exceeded"),
    "invalid": (400, "invalid_request_error", "invalid"),
    "unavailable": (503, "server_error", "unavailable"),
    "expired": (504, "server_error", "expired"),
    "cancelled": (409, "server_error", "cancelled"),
    "poisoned": (500, "server_error", "poisoned"),
    "failed": (500, "server_error", "failed"),
}


def error(status: int, kind: str, code: str, message: str, *, param: str | None = None) -> JSONResponse:
    """An error response."""
    return JSONResponse({"error": error_body(kind, code, message, param)}, status)


def error_body(kind: str, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The object `error`."""
    return {"message": message, "type": kind, "param": param, "code": code}


def is_error(final: Reply) -> bool:
    """Whether a final is no answer."""
    return "error" in final or final.get("reason") in {"cancelled", "expired"}


def error_of(final: Reply) -> JSONResponse:
    """The response of a final that is no answer."""
    status, kind, code = ERRORS.get(str(final.get("reason")), ERRORS["failed"])
    response = error(status, kind, code, message_of(final))
    response.headers.update(retry_after(final))
    return response


def retry_after(final: Reply) -> dict[str, str]:
    """The header `Retry-After` in whole seconds, of a final that is `busy`."""
    wait = number(final.get("retry_after_ms"))
    if final.get("reason") != "busy" or wait is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(min(wait, 86_400_000) / 1000)))}


def message_of(final: Reply) -> str:
    """The sentence of a final that is no answer."""
    given = final.get("error")
    if isinstance(given, dict) and isinstance(message := given.get("message"), str):
        return message
    return {"expired": "the prompt's deadline has passed", "cancelled": "the prompt was cancelled"}.get(
        str(final.get("reason")), "the device could not answer"
    )


class Shapes:
    """The objects of one answer. `chat` False: those of `completions`. `created`: Unix seconds."""

    def __init__(self, name: str, model: str, created: int, *, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": name, "created": created, "model": model}
        self._kind = kind

    def whole(self, final: Reply) -> dict[str, Any]:
        """The answer to a request without streaming."""
        text = final.get("text", "")
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(final), "logprobs": self._logprobs(final)}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if calls := tool_calls(final):
                message |= {"tool_calls": calls, "content": text or None}
            if isinstance(reasoning := final.get("reasoning"), str):
                message["reasoning_content"] = reasoning
            choice["message"] = message
        else:
            choice["text"] = text
        return {**self._head, "object": self._kind, "choices": [choice], "usage": usage(final)} | _receipt(final)

    def first(self) -> dict[str, Any]:
        """The first event of a chat's stream."""
        return self._event({"role": "assistant", "content": ""}, None)

    def grown(self, part: Grown) -> dict[str, Any]:
        """An event with more text."""
        if not self._chat:
            return self._event({"text": part.text}, None)
        delta: dict[str, Any] = {"content": part.text} if part.text or not part.reasoning else {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        return self._event(delta, None)

    def ends(self, final: Reply) -> list[dict[str, Any]]:
        """The events that end the choice: its tool calls and log probabilities, then the reason."""
        events = []
        calls, logprobs = tool_calls(final) if self._chat else [], self._logprobs(final)
        if calls or logprobs:
            delta: dict[str, Any] = {} if self._chat else {"text": ""}
            if calls:
                delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
            events.append(self._event(delta, None, logprobs))
        return [*events, self._event({} if self._chat else {"text": ""}, finish_reason(final)) | _receipt(final)]

    def usage(self, final: Reply) -> dict[str, Any]:
        """The event after the last, where it was asked for."""
        return {**self._event({}, None), "choices": [], "usage": usage(final)}

    def _logprobs(self, final: Reply) -> dict[str, Any] | None:
        """The device's log probabilities in the shape of this endpoint."""
        if not (entries := _entries(final.get("logprobs"))):
            return None
        return _chat_logprobs(entries) if self._chat else _completion_logprobs(entries)

    def _event(self, delta: dict[str, Any], reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": logprobs}
        choice |= {"delta": delta} if self._chat else delta
        kind = "chat.completion.chunk" if self._chat else self._kind
        return {**self._head, "object": kind, "choices": [choice]}


def finish_reason(final: Reply) -> str:
    """Why the answer ended, in OpenAI's words."""
    if tool_calls(final):
        return "tool_calls"
    return "length" if final.get("reason") == "length" else "stop"


def tool_calls(final: Reply) -> list[dict[str, Any]]:
    """The calls of a final; OpenAI's clients expect the arguments as text."""
    calls = final.get("tool_calls")
    shaped = []
    for index, call in enumerate(calls if isinstance(calls, list) else []):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        name = call.get("id") or f"call_{index}"
        shaped.append({"id": name, "type": "function", "function": {"name": function.get("name"), "arguments": text}})
    return shaped


def usage(final: Reply) -> dict[str, Any]:
    """Tokens."""
    given = final.get("usage")
    counts = given if isinstance(given, dict) else {}
    prompt, completion, cached = (
        int(number(counts.get(key)) or 0) for key in ("prompt_tokens", "completion_tokens", "cached_tokens")
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _entries(value: object) -> list[dict[str, Any]]:
    """The objects of a list that a device published."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _chat_logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    shaped = [
        {**_token(entry), "top_logprobs": [_token(other) for other in _entries(entry.get("top"))]} for entry in entries
    ]
    return {"content": shaped, "refusal": None}


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    text = str(entry.get("token", ""))
    # A token that ends within a character has U+FFFD in its text: its bytes are not known.
    code = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": number(entry.get("logprob")), "bytes": code}


def _completion_logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = [str(entry.get("token", "")) for entry in entries]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    top = [
        {str(other.get("token", "")): number(other.get("logprob")) for other in _entries(entry.get("top"))}
        for entry in entries
    ]
    return {
        "tokens": tokens, "token_logprobs": [number(entry.get("logprob")) for entry in entries],
        "top_logprobs": top if any(top) else None, "text_offset": offsets,
    }  # fmt: skip


def _receipt(final: Reply) -> dict[str, Any]:
    """Our own addition: which device, model and config answered."""
    receipt = final.get("receipt")
    return {"edged": {"receipt": receipt, "timing": final.get("timing")}} if isinstance(receipt, dict) else {}
