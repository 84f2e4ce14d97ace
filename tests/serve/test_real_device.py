"""The `openai` client, the server and a real device with a tiny model of random weights: tools, thoughts, logprobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.tool_templates import HERMES
from tests.support import Broker, Client, Device, running
from tests.tiny import make_gguf

pytestmark = [pytest.mark.slow, pytest.mark.broker]
THINKING = HERMES.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n{# </think> #}")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 10}, "size": {"enum": ["small", "big"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "lookup", "description": "Finds a city.", "parameters": SCHEMA}}
ASKED: Any = [{"role": "user", "content": "Rome?"}]


@pytest.fixture
def api(serve: Callable[..., str], broker: Broker, client: Client, tmp_path: Path) -> Iterator[openai.OpenAI]:
    config = {
        "model": {"source": str(make_gguf(tmp_path / "tiny.gguf", template=THINKING)), "context": 2048},
        "generation": {"temperature": 2},
        "limits": {"raw": True},
    }
    client.subscribe("edged/v1/test/device/tiny/status")
    with running(Device(tmp_path, broker, config, fake=False, name="tiny")):
        client.status("online", 60)
        yield openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0)


def test_a_call_and_its_result_go_round(api: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "lookup"}}  # one call: a model of random weights goes on for ever
    keys: Any = {
        "model": "tiny",
        "tools": [TOOL],
        "tool_choice": named,
        "extra_body": {"reasoning_tokens": 8},
        "max_tokens": 400,
    }
    first = api.chat.completions.create(messages=ASKED, **keys).choices[0]
    assert "tool_calls" == first.finish_reason
    calls = first.message.tool_calls
    assert calls
    assert {"city", "size"} == set(json.loads(calls[0].function.arguments))  # type: ignore[union-attr]
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "found"} for call in calls]
    turns: Any = [*ASKED, first.message, *results]
    again = api.chat.completions.create(
        model="tiny", messages=turns, tools=[TOOL], max_tokens=5, reasoning_effort="none"
    )
    assert "length" == again.choices[0].finish_reason
    with api.chat.completions.stream(messages=ASKED, **keys) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls" == streamed.finish_reason
    assert streamed.message.tool_calls
    assert "lookup" == streamed.message.tool_calls[0].function.name


def test_a_thought_its_text_and_log_probabilities_are_streamed(api: openai.OpenAI) -> None:
    keys: Any = {"model": "tiny", "messages": ASKED, "seed": 1, "max_tokens": 120, "reasoning_effort": "low",
                 "extra_body": {"reasoning_tokens": 40}, "logprobs": True, "top_logprobs": 2}  # fmt: skip
    whole = api.chat.completions.create(**keys).choices[0]
    thought = (whole.message.model_extra or {})["reasoning_content"]
    assert thought
    assert whole.message.content
    assert whole.logprobs is not None
    events = [event.choices[0] for event in api.chat.completions.create(stream=True, **keys)]
    assert whole.message.content == "".join(event.delta.content or "" for event in events)
    assert thought == "".join((event.delta.model_extra or {}).get("reasoning_content", "") for event in events)
    streamed = [token for event in events if event.logprobs for token in event.logprobs.content or []]
    assert whole.logprobs.content == streamed
    assert all(2 == len(token.top_logprobs) for token in streamed)


def test_a_raw_completion_has_its_own_shape_of_log_probabilities(api: openai.OpenAI) -> None:
    choice = api.completions.create(model="tiny", prompt="One, two,", max_tokens=6, logprobs=3, seed=2).choices[0]
    assert choice.logprobs is not None
    assert 6 == len(choice.logprobs.tokens or []) == len(choice.logprobs.token_logprobs or [])
