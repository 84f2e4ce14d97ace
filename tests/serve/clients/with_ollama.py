"""Runs where the Python client of Ollama is installed, with the address of `edgectl serve` as argument."""

import sys
from typing import Any

import ollama

client: Any = ollama.Client(host=sys.argv[1])
user = [{"role": "user", "content": "Rome?"}]
TEXT = "Rome is warm"


def weather(city: str) -> str:
    """The weather now.

    Args:
        city: where
    """
    return "21"


assert {"fleet", "scripted"} <= {model.model for model in client.list().models}, client.list()
client.show("scripted")
client.ps()

whole = client.chat(model="scripted", messages=user, options={"temperature": 0.2, "num_predict": 20, "num_ctx": 512})
assert (TEXT, True, 3) == (whole.message.content, whole.done, whole.eval_count), whole
assert TEXT == "".join(part.message.content for part in client.chat(model="scripted", messages=user, stream=True))
assert TEXT == client.generate(model="scripted", prompt="Rome?").response
assert TEXT == "".join(part.response for part in client.generate(model="scripted", prompt="Rome?", stream=True))

thinks = client.chat(model="scripted", messages=user, think=True)
assert ("Hmm", TEXT) == (thinks.message.thinking, thinks.message.content), thinks

called = client.chat(model="scripted", messages=user, tools=[weather])
call = called.message.tool_calls[0]
assert ("weather", {"city": "Rome"}) == (call.function.name, call.function.arguments), called
turns = [*user, called.message, {"role": "tool", "content": "21", "tool_name": "weather"}]
assert "it has 21" == client.chat(model="scripted", messages=turns, tools=[weather]).message.content
assert client.chat(model="scripted", messages=user, format={"type": "object"}).message.content.startswith("{")

for model, content, status in (("nobody", "x", 404), ("scripted", "busy", 429)):
    got = 200
    try:
        client.chat(model=model, messages=[{"role": "user", "content": content}])
    except ollama.ResponseError as error:
        got = error.status_code
    assert status == got, model
