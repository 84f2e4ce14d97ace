"""A prompt and its answer, as every package knows them. Frozen data.

Units: times in milliseconds where the name ends in `_ms`, else seconds; text lengths in Unicode code points.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
Reason = Literal[
    "stop", "length", "cancelled", "expired", "busy", "too_long", "invalid", "poisoned", "unavailable", "failed"
]
DEFAULT_PRIORITY = 5
LEVELS_PER_PRIORITY = 2  # of the engine's levels of urgency; sequences one level apart are computed together


class Turn(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: Role
    content: str


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1: off.

    `seed` None: the engine draws one; the final names it.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


MODEL_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling keys for which a model may have its own values."""


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema"):
    """The output is one JSON value that obeys this schema, given as JSON text."""

    text: str


class Choice(msgspec.Struct, frozen=True, tag="choice"):
    """The output is exactly one of these texts."""

    choices: tuple[str, ...]


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole output matches this regular expression."""

    pattern: str


Format = JsonSchema | Choice | Regex


class Request(msgspec.Struct, frozen=True):
    """What an engine is asked to do: chat turns (the chat template is applied) or, with `raw`, a text as it is.

    `continue_last`: the last turn, the assistant's, goes on. `arrived`: Unix time, for templates that write the date.
    `unset`: sampling keys that neither the prompt nor the config sets; a model's own values replace those of
    `sampling` there.

    `format` None: free text; else the output obeys it or the prompt fails, and `sampling.stop` must be empty.
    `priority` 0 (first) to 9: sequences of a better priority are served before others, those of the same take turns.
    `logprobs`: the final carries the log probability of each chosen token (no key of a prompt asks for it).
    """

    turns: tuple[Turn, ...] = ()
    raw: str | None = None
    sampling: Sampling = Sampling()
    priority: int = DEFAULT_PRIORITY
    format: Format | None = None
    logprobs: bool = False
    continue_last: bool = False
    arrived: float | None = None
    unset: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """Token counts. `cached_tokens` of the prompt were taken from the key/value cache of an earlier one."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct, frozen=True):
    """New text of an answer. `at` is the number of code points before it."""

    at: int
    text: str


class Failure(msgspec.Struct, frozen=True):
    """Why a sequence failed: a code, and a sentence for a person that says what to do."""

    code: str
    message: str


class Final(msgspec.Struct, frozen=True):
    """How a sequence ended. `seed` is the one that was used. `failure` gives the cause where the reason is `failed`.

    `prefill_ms` is from the first prompt token computed to the first token sampled, `decode_ms` from there to the end.
    `logprobs`, where they were asked for: the model's own log probability of each chosen token, in nats.
    """

    reason: Reason
    text: str
    usage: Usage
    seed: int
    prefill_ms: float
    decode_ms: float
    failure: Failure | None = None
    logprobs: tuple[float, ...] = ()


class Started(msgspec.Struct, frozen=True):
    """The engine begins to compute this sequence (emitted once, before its first token)."""


class ModelInfo(msgspec.Struct, frozen=True):
    """The loaded model. `quantization` names the arithmetic (`float32 (from q4_1)`).

    `digest` is `sha256:` and 64 hex digits. `context` is the number of tokens a sequence may have, `slots` how many
    sequences are computed at a time. `fallback` says why the native engine does not compute this, where that was not
    asked for. `template`: the chat template in use, `model` for its own, a built-in one's name, `file`, "" for none;
    `template_problem` says why one is not used. `sampling`: the model's own values, by the prompts' keys.
    """

    name: str
    digest: str
    architecture: str
    quantization: str
    backend: str
    context: int
    slots: int
    weights_bytes: int
    fallback: str = ""
    template: str = ""
    template_problem: str = ""
    sampling: dict[str, float] = {}
