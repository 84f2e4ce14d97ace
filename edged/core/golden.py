"""Golden prompts: what a new model must answer before it stays. Frozen data."""

from __future__ import annotations

import msgspec

from edged.core.prompt import Turn


class Contains(msgspec.Struct, frozen=True, tag="contains"):
    """The answer contains one of these texts, whatever their case."""

    texts: tuple[str, ...]


class Matches(msgspec.Struct, frozen=True, tag="matches"):
    """This regular expression (of Python) is found in the answer."""

    pattern: str


class Obeys(msgspec.Struct, frozen=True, tag="obeys"):
    """The answer is one JSON value that obeys this schema, given as JSON text."""

    schema: str


Expect = Contains | Matches | Obeys


class Golden(msgspec.Struct, frozen=True):
    """One golden prompt, computed at temperature 0. `within` in seconds; None: it is not judged by that."""

    turns: tuple[Turn, ...]
    max_tokens: int = 128
    expect: Expect | None = None
    within: float | None = None
    min_tokens_per_second: float | None = None


class GoldenResult(msgspec.Struct, frozen=True):
    """How a model answered one of them. `tokens_per_second` None: fewer than two tokens."""

    prompt: str
    answer: str
    held: bool
    took_ms: float
    tokens_per_second: float | None = None
