"""Answers and errors in OpenAI's shape. Shapes: platform.openai.com/docs/api-reference (chat, completions, models)."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import JSONResponse

from edged.serve.broker import Reply
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
    if isinstance(wait := final.get("retry_after_ms"), int) and status == 429:
        response.headers["Retry-After"] = str(max(1, -(-wait // 1000)))
    return response


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
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(final), "logprobs": _logprobs(final)}
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

    def last(self, final: Reply) -> dict[str, Any]:
        """The event that ends the choice."""
        delta: dict[str, Any] = {} if self._chat else {"text": ""}
        if self._chat and (calls := tool_calls(final)):
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        return self._event(delta, finish_reason(final), _logprobs(final)) | _receipt(final)

    def usage(self, final: Reply) -> dict[str, Any]:
        """The event after the last, where it was asked for."""
        return {**self._event({}, None), "choices": [], "usage": usage(final)}

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
    counts = final.get("usage") if isinstance(final.get("usage"), dict) else {}
    assert isinstance(counts, dict)  # noqa: S101 just made so
    prompt, completion = int(counts.get("prompt_tokens", 0)), int(counts.get("completion_tokens", 0))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": int(counts.get("cached_tokens", 0))},
    }


def _logprobs(final: Reply) -> dict[str, Any] | None:
    """The device's log probabilities in the shape of a chat's."""
    tokens = final.get("logprobs")
    if not isinstance(tokens, list):
        return None
    shaped = []
    for entry in tokens:
        if isinstance(entry, dict):
            top = [_token(other) for other in entry.get("top", []) if isinstance(other, dict)]
            shaped.append({**_token(entry), "top_logprobs": top})
    return {"content": shaped, "refusal": None}


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    text = str(entry.get("token", ""))
    return {"token": text, "logprob": entry.get("logprob"), "bytes": list(text.encode("utf-8", "replace"))}


def _receipt(final: Reply) -> dict[str, Any]:
    """Our own addition: which device, model and config answered."""
    receipt = final.get("receipt")
    return {"edged": {"receipt": receipt, "timing": final.get("timing")}} if isinstance(receipt, dict) else {}
