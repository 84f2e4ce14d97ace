"""A prompt and its answer, as every package knows them. Frozen data.

Units: times in milliseconds where the name ends in `_ms`, else seconds; text lengths in Unicode code points.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
Reason = Literal[
    "stop", "length", "cancelled", "expired", "busy", "too_long", "invalid", "poisoned", "unavailable", "failed"
]
Reasoning = Literal["auto", "off", "show"]
ToolChoice = Literal["auto", "none", "required"]
DEFAULT_PRIORITY = 5
MAX_TOP_LOGPROBS = 20  # the most likely tokens that are reported in place of one
MAX_LOGPROBS = 8192  # log probabilities of one final, which takes about 45 bytes for each
LEVELS_PER_PRIORITY = 2  # of the engine's levels of urgency; sequences one level apart are computed together


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool by the model. `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat. One of the role `tool` is the result of the call `tool_call_id` of an earlier turn."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters`: the JSON schema of its arguments, an object, as JSON text."""

    name: str
    description: str
    parameters: str


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


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine is asked to do: chat turns (the chat template is applied) or, with `raw`, a text as it is.

    `continue_last`: the last turn, the assistant's, goes on. `arrived`: Unix time, for templates that write the date.
    `unset`: sampling keys that neither the prompt nor the config sets; a model's own values replace those of
    `sampling` there.

    `format` None: free text; else the output obeys it or the prompt fails, and `sampling.stop` must be empty.
    `priority` 0 (first) to 9: sequences of a better priority are served before others, those of the same take turns.
    `logprobs`: the final carries the log probability of each token of the text, and the `top_logprobs` best beside it.
    `tool_choice`: whether calls of `tools` are allowed, or all of the answer; `tool_name`: of this tool alone.
    `reasoning`: whether the model may think before its answer, and whether the thought is part of the result;
    `reasoning_tokens`: the most tokens of a thought, after which it is closed.
    `embed`: texts whose vectors are wanted, in place of turns and a raw text.
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
    top_logprobs: int = 0
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    reasoning: Reasoning = "auto"
    reasoning_tokens: int | None = None
    embed: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """Token counts. `cached_tokens` of the prompt were taken from the key/value cache of an earlier one."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token's text, and its log probability in nats by the model itself: before temperature, penalties and formats.

    The text of a token that ends within a character has a replacement character.
    """

    token: str
    logprob: float


class ChosenLogprob(msgspec.Struct, frozen=True):
    """A token of an answer, and the most likely tokens in its place, best first."""

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class Chunk(msgspec.Struct, frozen=True):
    """New text of an answer, and of the thought before it. `at` and `reasoning_at` are the code points before them."""

    at: int
    text: str
    reasoning_at: int = 0
    reasoning: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why a sequence failed: a code, and a sentence for a person that says what to do."""

    code: str
    message: str


class Embedding(msgspec.Struct, frozen=True):
    """Vectors of length 1, one for each text; `pooling` says what of the hidden states: their `mean`, or the `last`."""

    vectors: tuple[tuple[float, ...], ...]
    pooling: str


class Final(msgspec.Struct, frozen=True):
    """How a sequence ended. `seed` is the one that was used. `failure` gives the cause where the reason is `failed`.

    `prefill_ms` is from the first prompt token computed to the first token sampled, `decode_ms` from there to the end.
    `logprobs`, where they were asked for: of each token of the text.
    `reasoning`: the thought before the text; None where it is not to be shown.
    """

    reason: Reason
    text: str
    usage: Usage
    seed: int
    prefill_ms: float
    decode_ms: float
    failure: Failure | None = None
    logprobs: tuple[ChosenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    embedding: Embedding | None = None


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
