"""Runs where langchain-openai is installed, with the address of `edgectl serve` as argument."""

import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

chat: Any = ChatOpenAI(model="scripted", base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, temperature=0.2)
asked = [HumanMessage("Rome?")]


@tool
def weather(city: str) -> str:
    """The weather now."""
    return "21"


class City(BaseModel):
    """A city."""

    city: str


answer = chat.invoke("Rome?")
assert ("Rome is warm", 8) == (answer.content, answer.usage_metadata["total_tokens"]), answer
assert "Rome is warm" == "".join(part.content for part in chat.stream("Rome?"))
assert ["Rome is warm"] * 2 == [one.content for one in chat.batch(["Rome?", "Rome?"])]

bound = chat.bind_tools([weather])
called = bound.invoke(asked)
assert {"city": "Rome"} == called.tool_calls[0]["args"], called
result = ToolMessage(weather.invoke(called.tool_calls[0]["args"]), tool_call_id=called.tool_calls[0]["id"])
assert "it has 21" == bound.invoke([*asked, called, result]).content
whole: Any = None
for part in bound.stream(asked):
    whole = part if whole is None else whole + part
assert {"city": "Rome"} == whole.tool_calls[0]["args"], whole

for method in ("json_schema", "json_mode"):
    assert City(city="Rome") == chat.with_structured_output(City, method=method).invoke("Rome as JSON?")
