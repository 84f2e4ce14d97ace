"""The OpenAI-compatible API, judged by the `openai` client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.support import Client, Device


@pytest.fixture
def api(serve: Callable[..., str], device: Callable[..., Device]) -> openai.OpenAI:
    device()
    return openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0)


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
