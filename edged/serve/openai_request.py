"""Requests in OpenAI's shape as prompts of a device.

Keys: platform.openai.com/docs/api-reference (chat, completions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from edged.core.errors import BadValue

# Accepted without effect: they do not change what a model answers.
WITHOUT_EFFECT: Final = frozenset({
    "user", "metadata", "store", "stream_options", "parallel_tool_calls", "service_tier", "safety_identifier",
    "prompt_cache_key",
})  # fmt: skip
# Accepted at these values alone: a device has no such option, and this is what it does.
ONLY: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,), "best_of": (1,), "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "echo": (False,),
    "logit_bias": ({},), "suffix": ("",), "modalities": (["text"],),
}  # fmt: skip
SAME: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
# Sampling keys that a device has and OpenAI has not may be given too (`extra_body` of the client).
OWN: Final = ("priority", "deadline_ms", "supersede", "reasoning", "reasoning_tokens", "continue")
# Keys of a message that clients send back with an earlier answer, or that no chat template knows.
NOT_TURNS: Final = frozenset({"name", "refusal", "annotations", "reasoning", "reasoning_content"})
CHAT: Final = frozenset({"model", "messages", "stream", "max_tokens", "max_completion_tokens", "stop",
                         "response_format", "logprobs", "top_logprobs", "reasoning_effort", "tools",
                         "tool_choice"})  # fmt: skip
COMPLETIONS: Final = frozenset({"model", "prompt", "stream", "max_tokens", "stop", "logprobs"})


def chat_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a `chat/completions` request. Raises BadValue."""
    _only_known(request, CHAT)
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadValue("messages", "must be a list of at least one message")
    body: dict[str, Any] = {"messages": [_message(index, message) for index, message in enumerate(messages)]}
    _common(request, body)
    if (limit := request.get("max_completion_tokens", request.get("max_tokens"))) is not None:
        body["max_tokens"] = limit
    if request.get("logprobs"):
        body["logprobs"] = request.get("top_logprobs") or 0
    elif request.get("top_logprobs"):
        raise BadValue("top_logprobs", "needs logprobs: true")
    if (shape := request.get("response_format")) is not None:
        body |= _format(shape)
    if (effort := request.get("reasoning_effort")) is not None:
        if not isinstance(effort, str):
            raise BadValue("reasoning_effort", "must be a word: none, low, medium or high")
        body["reasoning"] = "off" if effort in ("none", "minimal") else "show"
    if request.get("tools"):
        body["tools"] = tools_of(request["tools"])
        if request.get("tool_choice") is not None:
            body["tool_choice"] = request["tool_choice"]
    return body


def completion_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a `completions` request: raw text, no template. Raises BadValue."""
    _only_known(request, COMPLETIONS)
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadValue("prompt", "must be one text that is not empty")
    body: dict[str, Any] = {"prompt": prompt, "raw": True}
    _common(request, body)
    if request.get("max_tokens") is not None:
        body["max_tokens"] = request["max_tokens"]
    if request.get("logprobs") is not None:
        body["logprobs"] = request["logprobs"]
    return body


def wants_usage(request: dict[str, Any]) -> bool:
    """Whether a stream ends with the usage."""
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def tools_of(value: object) -> object:
    """The tools without the keys of a function that are null: clients write them for what is not set."""
    if not isinstance(value, list):
        return value
    return [_without_nulls(tool) for tool in value]


def _without_nulls(tool: object) -> object:
    if not isinstance(tool, dict):
        return tool
    function = tool.get("function")
    inner = {key: one for key, one in function.items() if one is not None} if isinstance(function, dict) else function
    return {**tool, "function": inner} if "function" in tool else tool


def _only_known(request: dict[str, Any], known: frozenset[str]) -> None:
    for key, value in request.items():
        if key in known or key in WITHOUT_EFFECT or key in SAME or key in OWN or value is None:
            continue
        if key not in ONLY:
            raise BadValue(key, "is not supported here; leave it out")
        if value not in ONLY[key]:
            raise BadValue(key, f"must be {ONLY[key][0]!r} here, or left out")


def _common(request: dict[str, Any], body: dict[str, Any]) -> None:
    for key in (*SAME, *OWN):
        if request.get(key) is not None:
            body[key] = request[key]
    stop = request.get("stop")
    if stop is not None:
        body["stop"] = [stop] if isinstance(stop, str) else stop
    if isinstance(request.get("stream"), bool) or request.get("stream") is None:
        return
    raise BadValue("stream", "must be true or false")


def _message(index: int, message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadValue(f"messages[{index}]", "must be an object with role and content")
    given = {key: value for key, value in message.items() if value is not None and key not in NOT_TURNS}
    if given.get("tool_calls") == []:
        del given["tool_calls"]
    if given.get("role") == "developer":
        given["role"] = "system"
    return given


def _format(shape: object) -> dict[str, Any]:
    kind = shape.get("type") if isinstance(shape, dict) else None
    readers: dict[object, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "text": lambda _: {},
        "json_object": lambda _: {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "json_schema": lambda given: {"format": {"type": "json_schema", "schema": _schema(given)}},
    }
    if not isinstance(shape, dict) or not isinstance(kind, str) or kind not in readers:
        raise BadValue("response_format.type", "must be text, json_object or json_schema")
    return readers[kind](shape)


def _schema(shape: dict[str, Any]) -> dict[str, Any]:
    outer = shape.get("json_schema")
    schema = outer.get("schema") if isinstance(outer, dict) else None
    if not isinstance(schema, dict):
        raise BadValue("response_format.json_schema.schema", "must be a JSON schema")
    return schema
