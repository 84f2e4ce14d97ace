"""Ollama's API as a second face: `/api/tags`, `/api/chat`, `/api/generate`, `/api/version`, `/api/show`, `/api/ps`.

Shapes: github.com/ollama/ollama, docs/api.md. Durations there are nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edged import __version__
from edged.core.errors import BadValue, BrokerError, EdgedError
from edged.serve import openai_reply as reply
from edged.serve.bodies import read_object
from edged.serve.broker import Broker
from edged.serve.fleet_state import number
from edged.serve.ollama_turns import turns_of
from edged.serve.openai_request import tools_of
from edged.serve.prompts import Ended, Grown, NoDeviceError, Part, ask, find_device, models_of
from edged.serve.until_gone import run_until_gone

# Ollama's name of an option → ours.
OPTIONS: Final = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed",
    "repeat_penalty": "repetition_penalty", "num_predict": "max_tokens", "stop": "stop",
}  # fmt: skip
# They concern the machine that runs Ollama; a device has its own config for them.
WITHOUT_EFFECT: Final = frozenset({
    "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "numa", "repeat_last_n",
    "penalize_newline",
})  # fmt: skip
Line = Callable[[str, Grown, dict[str, Any]], dict[str, Any]]
"""A model's name, more text and the final (empty before it) → a line of the answer."""
_MS: Final = 1_000_000  # nanoseconds


class OllamaApi:
    """The routes, on one connection to the broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def routes(self) -> list[Route]:
        """Everything below `/api` that Ollama's clients use."""
        return [
            Route("/api/version", self.version),
            Route("/api/tags", self.tags),
            Route("/api/ps", self.tags),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
        ]

    async def version(self, _request: Request) -> Response:
        """Ours."""
        return JSONResponse({"version": __version__})

    async def tags(self, _request: Request) -> Response:
        """The devices that take prompts, as models."""
        if self._broker.problem:
            return _failed(503, f"no broker: {self._broker.problem}")
        await self._broker.settle()
        return JSONResponse({"models": [self._model(name) for name in models_of(self._broker.state)]})

    async def show(self, request: Request) -> Response:
        """One of them."""
        try:
            wanted = await read_object(request)
            device = await find_device(self._broker, _name(wanted))
        except BadValue as error:
            return _failed(400, str(error))
        except NoDeviceError as error:
            return _failed(503 if error.known else 404, str(error))
        except BrokerError as error:
            return _failed(503, str(error))
        model = device.health.get("model")
        about = model if isinstance(model, dict) else {}
        return JSONResponse({
            "modelfile": "", "parameters": "", "template": "", "details": self._model(device.name)["details"],
            "model_info": {"edged": about}, "capabilities": ["completion", "tools"],
        })  # fmt: skip

    async def chat(self, request: Request) -> Response:
        """`/api/chat`."""
        return await self._answer(request, _chat_prompt, _chat_line)

    async def generate(self, request: Request) -> Response:
        """`/api/generate`."""
        return await self._answer(request, _generate_prompt, _generate_line)

    def _model(self, name: str) -> dict[str, Any]:
        device = self._broker.state.devices.get(name)
        about = device.health.get("model") if device is not None else None
        model = about if isinstance(about, dict) else {}
        details = {
            "format": "gguf", "family": "", "families": [], "parameter_size": "", "parent_model": "",
            "quantization_level": str(model.get("quantization") or ""),
        }  # fmt: skip
        return {
            "name": name, "model": name, "modified_at": _now(), "size": int(number(model.get("bytes")) or 0),
            "digest": str(model.get("digest") or "").removeprefix("sha256:"), "details": details,
        }  # fmt: skip

    async def _answer(
        self,
        request: Request,
        prompt: Callable[[dict[str, Any]], dict[str, Any]],
        line: Line,
    ) -> Response:
        try:
            wanted = await read_object(request)
            name, body = _name(wanted), prompt(wanted)
            device = await find_device(self._broker, name)
        except BadValue as error:
            return _failed(400, str(error))
        except NoDeviceError as error:
            return _failed(503 if error.known else 404, str(error))
        except BrokerError as error:
            return _failed(503, str(error))
        streams = wanted.get("stream") is not False
        parts = ask(self._broker, device.name, {**body, "stream": streams})
        try:
            if streams:
                return await _streamed(request, name, parts, line)
            return await run_until_gone(request, _whole(name, parts, line))
        except EdgedError as error:
            return _failed(503, str(error))


async def _streamed(request: Request, name: str, parts: AsyncGenerator[Part], line: Line) -> Response:
    """A stream, or an error with a status of its own where no text came before it."""
    first = await run_until_gone(request, anext(parts))
    if isinstance(first, Response):
        return first
    if isinstance(first, Ended) and reply.is_error(first.final):
        return _error_of(first.final)
    return StreamingResponse(_lines(name, first, parts, line), media_type="application/x-ndjson")


async def _whole(name: str, parts: AsyncGenerator[Part], line: Line) -> Response:
    async with aclosing(parts) as closing:
        async for part in closing:
            if isinstance(part, Ended):
                if reply.is_error(part.final):
                    return _error_of(part.final)
                text = str(part.final.get("text", ""))
                return JSONResponse(line(name, Grown(text, str(part.final.get("reasoning") or "")), part.final))
    raise BrokerError("the answer ended early")


async def _lines(name: str, first: Part, parts: AsyncGenerator[Part], line: Line) -> AsyncIterator[bytes]:
    async with aclosing(parts) as closing:
        part = first
        try:
            while not isinstance(part, Ended):
                yield _line(line(name, part, {}))
                part = await anext(closing)
        except EdgedError as error:
            yield _line({"error": str(error)})
            return
        if reply.is_error(part.final):
            yield _line({"error": reply.message_of(part.final)})
            return
        if part.rest.text or part.rest.reasoning:
            yield _line(line(name, part.rest, {}))
        yield _line(line(name, Grown(""), part.final))


def _chat_line(name: str, part: Grown, final: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if part.reasoning:
        message["thinking"] = part.reasoning
    if calls := reply.tool_calls(final):
        message["tool_calls"] = [
            {"function": {"name": call["function"]["name"], "arguments": _arguments(call["function"]["arguments"])}}
            for call in calls
        ]
    return {"model": name, "created_at": _now(), "message": message, "done": bool(final)} | _figures(final)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call, which Ollama's clients expect as an object."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _generate_line(name: str, part: Grown, final: dict[str, Any]) -> dict[str, Any]:
    thought = {"thinking": part.reasoning} if part.reasoning else {}
    line = {"model": name, "created_at": _now(), "response": part.text, "done": bool(final), **thought}
    return line | _figures(final)


def _figures(final: dict[str, Any]) -> dict[str, Any]:
    if not final:
        return {}
    usage = reply.usage(final)
    given = final.get("timing")
    timing = given if isinstance(given, dict) else {}
    total, first = number(timing.get("total_ms")) or 0.0, number(timing.get("ttft_ms")) or 0.0
    return {
        "done_reason": "length" if final.get("reason") == "length" else "stop",
        "total_duration": int(total * _MS),
        "load_duration": 0,
        "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": int(first * _MS),
        "eval_count": usage["completion_tokens"],
        "eval_duration": int(max(0.0, total - first) * _MS),
    }


def _chat_prompt(wanted: dict[str, Any]) -> dict[str, Any]:
    messages = wanted.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadValue("messages", "must be a list of at least one message")
    body: dict[str, Any] = {"messages": turns_of(messages)}
    if wanted.get("tools"):
        body["tools"] = tools_of(wanted["tools"])
    return body | _shared(wanted)


def _generate_prompt(wanted: dict[str, Any]) -> dict[str, Any]:
    prompt = wanted.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadValue("prompt", "must be a text that is not empty")
    if wanted.get("images"):
        raise BadValue("images", "are not supported by devices")
    body: dict[str, Any] = {"prompt": prompt}
    if wanted.get("system"):
        body["system"] = wanted["system"]
    if wanted.get("raw"):
        body["raw"] = True
    return body | _shared(wanted)


def _shared(wanted: dict[str, Any]) -> dict[str, Any]:
    body = _sampling(wanted.get("options") or {})
    shape = wanted.get("format")
    if shape == "json":
        body["format"] = {"type": "json_schema", "schema": {"type": "object"}}
    elif isinstance(shape, dict):
        body["format"] = {"type": "json_schema", "schema": shape}
    elif shape is not None and shape != "":
        raise BadValue("format", "must be json or a JSON schema")
    if (think := wanted.get("think")) is not None:
        body["reasoning"] = "show" if think else "off"
    return body


def _sampling(options: object) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise BadValue("options", "must be an object")
    body: dict[str, Any] = {}
    for key, value in options.items():
        if key in OPTIONS:
            body[OPTIONS[key]] = value
        elif key not in WITHOUT_EFFECT:
            raise BadValue(f"options.{key}", "is not supported here; leave it out")
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] < 0:
        del body["max_tokens"]  # Ollama's -1 and -2: as much as fits
    return body


def _name(wanted: dict[str, Any]) -> str:
    name = wanted.get("model", wanted.get("name"))
    if not isinstance(name, str):
        raise BadValue("model", "must be the name of a device, or fleet")
    return name.removesuffix(":latest")


def _error_of(final: dict[str, Any]) -> JSONResponse:
    status, _, _ = reply.ERRORS.get(str(final.get("reason")), reply.ERRORS["failed"])
    response = _failed(status, reply.message_of(final))
    response.headers.update(reply.retry_after(final))
    return response


def _failed(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
