"""What the reception of a model (`fleet/reception.py`) asks its owner to do. Frozen data."""

from __future__ import annotations

import msgspec

from edged.core.chunk_set import Range
from edged.wire.model_push import Offer, State


class Open(msgspec.Struct, frozen=True):
    """Open the partial file, or begin one; answered by `opened` or `failed`."""

    digest: str
    offer: Offer


class Listen(msgspec.Struct, frozen=True):
    """Subscribe to the chunks of this model."""

    digest: str


class Ignore(msgspec.Struct, frozen=True):
    """End the subscription to the chunks of this model."""

    digest: str


class Write(msgspec.Struct, frozen=True):
    """Verify a chunk and write it; answered by `written` or `failed`."""

    number: int
    payload: bytes


class Request(msgspec.Struct, frozen=True):
    """Publish what is missing."""

    digest: str
    missing: list[Range]


class Report(msgspec.Struct, frozen=True):
    """Publish the state. `final` also becomes an event."""

    digest: str
    name: str
    state: State
    final: bool


class Store(msgspec.Struct, frozen=True):
    """The file is complete: close it, verify it and bring it into the store; answered by `stored`."""

    digest: str
    name: str


class Close(msgspec.Struct, frozen=True):
    """Close the partial file, which stays for the next time, or (`remove`) delete it."""

    remove: bool


class Bad(msgspec.Struct, frozen=True):
    """A message was ignored for this reason."""

    reason: str


Action = Open | Listen | Ignore | Write | Request | Report | Store | Close | Bad
