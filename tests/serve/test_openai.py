"""The OpenAI-compatible API, judged by the `openai` client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.serve.scripted_device import Script, ScriptedDevice, final
from tests.support import Client, Device, wait_until

ASKED: Any = [{"role": "user", "content": "Rome?"}]
CALL = {"id": "x3FgT0aQ7", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL: Any = {"type": "function", "function": {"name": "weather", "strict": None, "parameters": {"type": "object"}}}
LOGPROBS = [
    {"token": "Hi", "logprob": -0.5, "top": [{"token": "Hi", "logprob": -0.5}, {"token": "Ho", "logprob": -2.0}]},
    {"token": "\ufffd", "logprob": -9999, "top": []},
]


@pytest.fixture
def api(server: str, device: Callable[..., Device]) -> openai.OpenAI:
    device()
    return client_of(server, "pi")


def client_of(server: str, model: str) -> openai.OpenAI:
    """A client, once the server knows the device."""
    made = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    wait_until(lambda: model in {one.id for one in made.models.list()}, 10, f"{model} is known")
    return made


def test_the_models_are_the_devices_and_the_fleet(api: openai.OpenAI) -> None:
    assert ["pi", "fleet"] == [model.id for model in api.models.list()]


def test_a_chat_is_answered_whole_and_streamed(api: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "one two three"}]
    whole = api.chat.completions.create(model="pi", messages=messages)
    text = whole.choices[0].message.content
    assert text
    assert ("stop", True) == (whole.choices[0].finish_reason, bool(whole.usage and whole.usage.completion_tokens))
    events = list(
        api.chat.completions.create(
            model="fleet", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert text == "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    reasons = [event.choices[0].finish_reason for event in events if event.choices]
    assert ["stop"] == [reason for reason in reasons if reason]
    assert whole.usage == events[-1].usage


def test_errors_have_their_codes(api: openai.OpenAI, client: Client) -> None:
    with pytest.raises(openai.NotFoundError, match="no device nobody"):
        api.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        api.chat.completions.create(model="pi", messages=[{"role": "user", "content": "x"}], frequency_penalty=1.0)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        api.chat.completions.create(model="pi", messages=[{"role": "user", "content": "x"}], temperature=99)


def test_a_client_that_goes_away_cancels_its_prompt(api: openai.OpenAI, client: Client) -> None:
    stream = api.chat.completions.create(
        model="pi", messages=[{"role": "user", "content": "say:begun wait:never"}], stream=True
    )
    assert "begun" in "".join(event.choices[0].delta.content or "" for _, event in zip(range(2), stream, strict=False))
    stream.close()
    assert "cancelled" == client.any_final("web")["reason"]


@pytest.fixture
def scripted_api(
    server: str, scripted: Callable[[Script], ScriptedDevice]
) -> Callable[[Script], tuple[openai.OpenAI, ScriptedDevice]]:
    def make(script: Script) -> tuple[openai.OpenAI, ScriptedDevice]:
        device = scripted(script)
        return client_of(server, "scripted"), device

    return make


Api = Callable[[Script], tuple[openai.OpenAI, ScriptedDevice]]


def test_tools_go_to_the_device_and_back_whole_and_streamed(scripted_api: Api) -> None:
    def script(prompt: dict[str, Any]) -> list[dict[str, Any]]:
        return [final("21 degrees" if "tool" in str(prompt["messages"][-1]["role"]) else "", **called(prompt))]

    def called(prompt: dict[str, Any]) -> dict[str, Any]:
        return {} if prompt["messages"][-1]["role"] == "tool" else {"tool_calls": [CALL]}

    api, device = scripted_api(script)
    first = api.chat.completions.create(model="scripted", messages=ASKED, tools=[TOOL], tool_choice="required")
    choice = first.choices[0]
    assert ("tool_calls", None) == (choice.finish_reason, choice.message.content)
    assert choice.message.tool_calls is not None
    assert CALL == choice.message.tool_calls[0].model_dump()
    assert "strict" not in device.prompts[0]["tools"][0]["function"]
    turns: Any = [*ASKED, choice.message, {"role": "tool", "tool_call_id": CALL["id"], "content": "21"}]
    second = api.chat.completions.create(model="scripted", messages=turns, tools=[TOOL])
    assert "21 degrees" == second.choices[0].message.content
    assert {"role": "assistant", "tool_calls": [CALL]} == device.prompts[1]["messages"][1]
    with api.chat.completions.stream(model="scripted", messages=ASKED, tools=[TOOL]) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls" == streamed.finish_reason
    assert streamed.message.tool_calls is not None
    assert CALL["function"]["arguments"] == streamed.message.tool_calls[0].function.arguments


def test_a_thought_and_log_probabilities_are_passed_on(scripted_api: Api) -> None:
    chunks: list[dict[str, Any]] = [
        {"accepted": True, "position": 1, "eta_ms": None},
        {"seq": 0, "at": 0, "text": "", "reasoning": "Hm", "reasoning_at": 0},
        {"seq": 1, "at": 0, "text": "Hi", "reasoning": "m.", "reasoning_at": 2},
        {"seq": 2, "at": 40, "text": "lost before this"},
        {"seq": 0, "at": 0, "text": "H"},  # the device began again
    ]
    ended = final("Hi \N{GRINNING FACE}", reasoning="Hmm.", logprobs=LOGPROBS)
    api, device = scripted_api(lambda _: [*chunks, ended])
    keys: Any = {"model": "scripted", "messages": ASKED, "logprobs": True, "top_logprobs": 2}
    whole = api.chat.completions.create(**keys, reasoning_effort="low").choices[0]
    assert ("Hi \N{GRINNING FACE}", "Hmm.") == (whole.message.content, whole.message.model_extra["reasoning_content"])
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    first, second = whole.logprobs.content
    assert (-0.5, [72, 105], "Ho") == (first.logprob, first.bytes, first.top_logprobs[1].token)
    assert (-9999, None) == (second.logprob, second.bytes)
    assert ("show", 2) == (device.prompts[0]["reasoning"], device.prompts[0]["logprobs"])
    events = [event.choices[0] for event in api.chat.completions.create(**keys, stream=True)]
    assert "Hi \N{GRINNING FACE}" == "".join(event.delta.content or "" for event in events)
    assert "Hmm." == "".join((event.delta.model_extra or {}).get("reasoning_content", "") for event in events)
    assert 2 == sum(len(event.logprobs.content or []) for event in events if event.logprobs)
    completion = api.completions.create(model="scripted", prompt="x", logprobs=2).choices[0].logprobs
    assert completion is not None
    assert (["Hi", "\ufffd"], [0, 2]) == (completion.tokens, completion.text_offset)


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_device_is_a_429_with_its_time(scripted_api: Api, stream: bool) -> None:
    error = {"error": {"code": "queue_full", "message": "3 prompts wait already"}, "retry_after_ms": 2100}
    api, _ = scripted_api(lambda _: [final("", "busy", **error)])
    with pytest.raises(openai.RateLimitError, match="3 prompts wait") as raised:
        api.chat.completions.create(model="scripted", messages=ASKED, stream=stream)
    assert "3" == raised.value.response.headers["retry-after"]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [("too_long", 400, "context_length_exceeded"), ("unavailable", 503, "unavailable"), ("poisoned", 500, "poisoned")],
)
def test_a_refusal_has_its_status(scripted_api: Api, reason: str, status: int, code: str) -> None:
    api, _ = scripted_api(lambda _: [final("", reason, error={"code": "x", "message": "a sentence"})])
    with pytest.raises(openai.APIStatusError, match="a sentence") as raised:
        api.chat.completions.create(model="scripted", messages=ASKED)
    assert (status, code) == (raised.value.status_code, raised.value.code)


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"prompt_tokens": "x", "completion_tokens": [1]}, "timing": 7, "receipt": "x"},
        {"tool_calls": [{"function": {"name": 7}}, 3, {"function": {"name": "f", "arguments": "no JSON"}}]},
        {"logprobs": [{"top": 5}, 3, {"token": None, "logprob": "x", "top": [4]}], "reasoning": 5},
        {"text": 7, "reason": [1]},
    ],
)
def test_a_final_of_another_shape_ends_the_answer(scripted_api: Api, odd: dict[str, Any]) -> None:
    api, _ = scripted_api(lambda _: [final("ok") | odd])
    address = str(api.base_url).removesuffix("/v1/")
    for path, body in (("/v1/chat/completions", {"messages": ASKED}), ("/v1/completions", {"prompt": "x"}),
                       ("/api/chat", {"messages": ASKED, "stream": False})):  # fmt: skip
        for stream in (False, True):
            answer = httpx.post(f"{address}{path}", json={"model": "scripted", "stream": stream, **body})
            assert 200 == answer.status_code, answer.text


def test_what_is_not_there_has_openais_shape(server: str) -> None:
    address = server
    unknown, wrong = httpx.get(f"{address}/v1/nothing"), httpx.get(f"{address}/v1/chat/completions")
    assert [404, "not_found"] == [unknown.status_code, unknown.json()["error"]["code"]]
    assert [405, "method_not_allowed"] == [wrong.status_code, wrong.json()["error"]["code"]]
    assert "POST" in wrong.headers["allow"]
    assert "there is nothing at /api/nothing" == httpx.get(f"{address}/api/nothing").json()["error"]
    large = httpx.post(f"{address}/v1/chat/completions", content=b" " * 10_000_000)
    assert [413, "too_large"] == [large.status_code, large.json()["error"]["code"]]


ODD: Any = [
    ("/v1/chat/completions", {"response_format": {"type": [1]}}),
    ("/v1/chat/completions", {"reasoning_effort": [1]}),
    ("/v1/chat/completions", {"messages": [{"role": {}}]}),
    ("/v1/chat/completions", {"stream": "yes"}),
    ("/v1/completions", {"prompt": [1, 2]}),
    ("/api/chat", {"format": [1]}),
    ("/api/chat", {"messages": [{"role": "tool", "content": "x"}]}),
    ("/api/chat", {"options": {"stop": 5}}),
    ("/api/generate", {"prompt": " "}),
]


def test_a_value_of_another_type_is_a_400(api: openai.OpenAI) -> None:
    address = str(api.base_url).removesuffix("/v1/")
    for path, odd in ODD:
        body = {"model": "pi", "messages": ASKED} if path.endswith(("chat", "chat/completions")) else {"model": "pi"}
        answer = httpx.post(f"{address}{path}", json={**body, **odd})
        assert (400, True) == (answer.status_code, "error" in answer.json()), (path, odd, answer.text)


def test_too_many_tokens_are_refused(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        api.chat.completions.create(model="pi", messages=ASKED, max_tokens=1_000_000)
