"""Running an engine to the end, with checks of each sequence's events."""

from __future__ import annotations

from pathlib import Path

from edged.core.prompt import Chunk, Final, Request, Sampling, Started
from edged.engine.engine import Engine, Event
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import FakeBackend, make_engine


def raw(text: str, priority: int = 5, **sampling: object) -> Request:
    return Request(
        raw=text, priority=priority, sampling=Sampling(**({"temperature": 0.0, "max_tokens": 50} | sampling))
    )


def drain(engine: Engine, limit: int = 100_000) -> dict[str, list[Event]]:
    """All events by key; each sequence begins with Started, ends with one Final, and its chunks are its text."""
    events: dict[str, list[Event]] = {}
    while engine.busy:
        assert (limit := limit - 1) > 0
        for key, event in engine.step():
            events.setdefault(key, []).append(event)
    for found in events.values():
        check(found)
    return events


def check(events: list[Event]) -> Final:
    final, text, reasoning = events[-1], "", ""
    assert isinstance(final, Final)
    for event in events[:-1]:
        assert isinstance(event, Started | Chunk)
        if isinstance(event, Chunk):
            assert (event.at, event.reasoning_at) == (len(text), len(reasoning))
            assert event.text or event.reasoning
            text += event.text
            reasoning += event.reasoning
    assert (text, reasoning) == (final.text, final.reasoning or "")
    assert [] == [event for event in events[1:] if isinstance(event, Started)]
    return final


def alone(backend: FakeBackend, codec: TextCodec, path: Path, request: Request) -> Final:
    fresh = FakeBackend(codec.vocabulary, backend.context)
    fresh.script = backend.script
    engine = make_engine(fresh, codec, path)
    engine.add("a", request)
    return check(drain(engine)["a"])


def drain_loose(engine: Engine) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {}
    while engine.busy:
        for key, event in engine.step():
            events.setdefault(key, []).append(event)
    return events
