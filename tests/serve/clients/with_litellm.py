"""Runs where litellm is installed, with the address of `edgectl serve` as argument."""

import sys
from typing import Any

import litellm

keys: dict[str, Any] = {"model": "openai/scripted", "api_base": f"{sys.argv[1]}/v1", "api_key": "none"}
user: Any = [{"role": "user", "content": "Rome?"}]
tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

whole = litellm.completion(messages=user, temperature=0.2, max_tokens=20, seed=1, stop=["x"], **keys)
assert ("Rome is warm", 8) == (whole.choices[0].message.content, whole.usage.total_tokens), whole

parts = list(litellm.completion(messages=user, stream=True, stream_options={"include_usage": True}, **keys))
assert "Rome is warm" == "".join(part.choices[0].delta.content or "" for part in parts if part.choices), parts
assert 8 == litellm.stream_chunk_builder(parts).usage.total_tokens, parts

for stream in (False, True):
    answer = litellm.completion(messages=user, tools=tools, tool_choice="auto", stream=stream, **keys)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    call = answer.choices[0].message.tool_calls[0]
    assert ("weather", '{"city": "Rome"}') == (call.function.name, call.function.arguments), answer
    assert "tool_calls" == answer.choices[0].finish_reason, answer
turns = [*user, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21"}]
assert "it has 21" == litellm.completion(messages=turns, tools=tools, **keys).choices[0].message.content

shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
assert litellm.completion(messages=user, response_format=shape, **keys).choices[0].message.content.startswith("{")

text = litellm.text_completion(prompt="Rome?", **(keys | {"model": "text-completion-openai/scripted"}))
assert "Rome is warm" == text.choices[0].text, text

refusal = ""
try:
    litellm.completion(messages=[{"role": "user", "content": "busy"}], num_retries=0, max_retries=0, **keys)
except litellm.RateLimitError as error:
    refusal = str(error)
assert "the queue is full" in refusal
