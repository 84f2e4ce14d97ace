"""Tools, thinking, log probabilities and vectors the whole way: a real daemon and worker, a tiny model of random
weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.schema_check import obeys
from tests.engine.tool_templates import HERMES
from tests.support import Broker, Client, Device, running
from tests.tiny import make_gguf

pytestmark = pytest.mark.broker
THINKING = HERMES.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n{# </think> #}")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 10}, "size": {"enum": ["small", "big"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "lookup", "description": "Finds a city.", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def tiny(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Client]]:
    folder = tmp_path_factory.mktemp("tools")
    client = Client(broker.port).subscribe("edged/v1/tools/#")
    config = {
        "identity": {"fleet": "tools", "device": "pi"},
        "model": {"source": str(make_gguf(folder / "tiny.gguf", template=THINKING)), "context": 2048},
        "generation": {"temperature": 2},
    }
    device = Device(folder, broker, config, fake=False)
    device.root = "edged/v1/tools/device/pi"
    with running(device):
        client.status("online", 60)
        yield device, client
        assert 0 == device.stop()
    client.close()


def ask(tiny: tuple[Device, Client], prompt_id: str, **body: Any) -> dict[str, Any]:
    device, client = tiny
    client.publish(f"{device.root}/prompt/me", {"id": prompt_id, **body})
    return client.final(prompt_id, 60)


def test_a_required_call_obeys_its_schema_and_the_chat_goes_on(tiny: tuple[Device, Client]) -> None:
    asked = {"role": "user", "content": "Rome?"}
    named = {"type": "function", "function": {"name": "lookup"}}
    keys = {"tools": [TOOL], "tool_choice": named, "reasoning_tokens": 8, "max_tokens": 400}
    final = ask(tiny, "call", messages=[asked], **keys)
    assert ("stop", "") == (final["reason"], final["text"]), final
    for call in final["tool_calls"]:
        assert ("function", "lookup", 9) == (call["type"], call["function"]["name"], len(call["id"]))
        assert obeys(call["function"]["arguments"], SCHEMA)
    assert "reasoning" not in final
    turns = [asked, {"role": "assistant", "content": None, "tool_calls": final["tool_calls"]}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "found"} for call in final["tool_calls"]]
    again = ask(tiny, "result", messages=[*turns, *results], max_tokens=5, reasoning="off", tools=[TOOL])
    assert "length" == again["reason"], again


def test_a_thought_is_streamed_apart_from_the_text(tiny: tuple[Device, Client]) -> None:
    final = ask(tiny, "thought", prompt="Why?", reasoning="show", reasoning_tokens=40, max_tokens=120, seed=1)
    assert "length" == final["reason"]
    assert final["reasoning"]
    assert final["text"]
    text = thought = ""
    for document in tiny[1].documents("thought"):
        if "seq" in document:
            text = text[: document["at"]] + document["text"]
            thought = thought[: document.get("reasoning_at", len(thought))] + document.get("reasoning", "")
    assert final["text"].startswith(text)
    assert thought
    assert final["reasoning"].startswith(thought)
    assert "think>" not in final["text"] + final["reasoning"]


def test_log_probabilities_and_vectors(tiny: tuple[Device, Client]) -> None:
    keys = {"prompt": "Hi", "max_tokens": 12, "reasoning": "off", "seed": 3}
    final = ask(tiny, "logprobs", logprobs=2, **keys)
    assert "length" == final["reason"]
    assert 12 == len(final["logprobs"])
    assert all(one["logprob"] <= 0 and 2 == len(one["top"]) for one in final["logprobs"])
    assert final["text"] == ask(tiny, "without", **keys)["text"]
    vectors = ask(tiny, "vectors", embed=["A cat.", "A cat.", "8" * 700])
    assert ("stop", "mean", 3) == (vectors["reason"], vectors["pooling"], len(vectors["vectors"]))
    first, same, other = vectors["vectors"]
    assert first == same != other
    assert abs(math.hypot(*other) - 1) < 1e-4


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"tools": [{"function": {"name": f"f{index}"}} for index in range(1000)]},
            "tools: must have at most 64 entries",
        ),
        ({"logprobs": 20, "max_tokens": 500}, "logprobs: with max_tokens 500 the final would carry 10500"),
        ({"reasoning_tokens": 0}, "reasoning_tokens: must be"),
        ({"embed": ["a"]}, "prompt: cannot be combined with embed"),
    ],
)
def test_what_is_too_much_is_invalid(tiny: tuple[Device, Client], body: dict[str, Any], says: str) -> None:
    final = ask(tiny, f"bad-{next(iter(body))}", prompt="Hi", **body)
    assert "invalid" == final["reason"]
    assert final["error"]["message"].startswith(says), final
