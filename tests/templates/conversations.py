"""Conversations that every template of `shapes` is rendered with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, now",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer"},
            },
            "required": ["place"],
        },
    },
}
LAMP = {
    "type": "function",
    "function": {
        "name": "set_lamp",
        "description": "Switches a lamp \"on\" or 'off'",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}, "levels": {"type": "array"}},
            "required": ["room", "on"],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "unit": "celsius"}},
}
DOCUMENTS = [
    {"doc_id": 1, "title": "Tides", "text": "The moon moves the sea."},
    {"doc_id": 2, "title": "Bread", "text": "Flour, water,\nsalt."},
]


@dataclass(frozen=True)
class Conversation:
    """One chat, and what is rendered beside it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_last: bool = False


def system(content: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": content}


def user(content: Any) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": content, **more}


_LONG = [turn for n in range(30) for turn in (user(f"Question {n}?"), assistant(f"Answer {n}."))] + [user("And now?")]
_RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"sky": "clear", "°C": 21}'}
_CALLED = [user("Weather in Zürich?"), assistant("", tool_calls=[CALL]), _RESULT]

CONVERSATIONS = {
    "one turn": Conversation([user("What is the capital of Japan?")]),
    "system": Conversation([system("Be brief."), user("Hello")]),
    "several turns": Conversation([user("Hi"), assistant("Hello. What can I do?"), user("Tell a joke")]),
    "system and turns": Conversation(
        [system("You are a pirate."), user("Hi"), assistant("Arr."), user("Who?"), assistant("Me."), user("Ok")]
    ),
    "blanks": Conversation([system("  Be brief.\n"), user("\n  Hello  \n\n"), assistant(" Hi \n"), user("\tBye ")]),
    "odd letters": Conversation([user("Grüße, 日本 🙂 <b>&amp;</b> \"a\" 'b' {{ x }} {% y %} \\n")]),
    "thoughts": Conversation(
        [user("2+2?"), assistant("<think>\nTwo and two.\n</think>\n\n4"), user("3+3?"), assistant("6"), user("Sure?")]
    ),
    "tools": Conversation([system("Use tools."), user("Weather in Zürich?")], tools=[WEATHER, LAMP]),
    "tools alone": Conversation([user("Lamp on, please")], tools=[LAMP]),
    "tool result": Conversation(_CALLED, tools=[WEATHER, LAMP]),
    "tool result and more": Conversation([*_CALLED, assistant("Clear, 21 °C."), user("Thanks")], tools=[WEATHER]),
    "documents": Conversation([user("What moves the sea?")], documents=DOCUMENTS),
    "thinking off": Conversation([user("Hi")], variables={"enable_thinking": False, "thinking": False}),
    "thinking on": Conversation([system("/think"), user("Hi")], variables={"enable_thinking": True, "thinking": True}),
    "no prompt": Conversation([user("Hi"), assistant("Hello.")], add_generation_prompt=False),
    "continued": Conversation([user("Count"), assistant("One, two, ")], continue_last=True),
    "two users": Conversation([user("Hi"), user("There?")]),
    "empty": Conversation([user("")]),
    "parts": Conversation([user([{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}])]),
    "long": Conversation(_LONG),
}
