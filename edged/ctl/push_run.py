"""What `edgectl model push` sends next, and how far the devices are: pure, no I/O.

Requests of all devices are one set: each chunk is sent once for however many asked, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec

from edged.core.chunk_set import ChunkSet, Range
from edged.wire.model_push import ENDED, MAX_RANGES, State

OFFER_EVERY: Final = 5.0  # seconds between two copies of the offer
ANNOUNCE_EVERY: Final = 2.0  # seconds between two announcements of what will be sent, while nothing new was requested
JOIN_WITHIN: Final = 12.0  # seconds in which devices answer that are not known by name
MAX_DEVICES: Final = 100_000

Step = Literal["offer", "announce"]


class Device(msgspec.Struct):
    """What is known about a device. `heard_at`: when it last published something; None: never."""

    state: State | None = None
    heard_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has the model, or never will by this offer."""
        return self.state is not None and self.state.state in ENDED


class PushRun:
    """See the module. `expected` names the devices that must answer. `open_ended`: others may join; without expected
    ones they are waited for until none did for `JOIN_WITHIN` seconds.

    `timeout`: seconds after which a device that publishes nothing is given up.
    """

    def __init__(
        self, count: int, expected: Iterable[str], clock: Callable[[], float], timeout: float, *, open_ended: bool
    ) -> None:
        self.devices = {name: Device() for name in expected}
        self.sent = 0
        self._count = count
        self._clock = clock
        self._timeout = timeout
        self._open_ended = open_ended
        self._join_within = 0.0 if self.devices else JOIN_WITHIN
        self._wanted = ChunkSet(count)
        self._requested = ChunkSet(count)  # by anyone, since the beginning
        self._at = 0
        self._started = self._joined_at = clock()
        self._offer_at = self._announce_at = clock()

    @property
    def share(self) -> float:
        """Share of what was ever requested that has been sent."""
        return 1.0 - self._wanted.size / self._requested.size if self._requested.size else 0.0

    @property
    def waiting(self) -> int:
        """How many chunks are requested and not sent yet."""
        return self._wanted.size

    @property
    def finished(self) -> bool:
        """Whether nothing more will come: every device has ended or is given up."""
        now = self._clock()
        if now < self._joined_at + self._join_within:
            return False
        return all(device.ended or self._is_silent(device, now) for device in self.devices.values())

    def due(self) -> list[Step]:
        """What is to be published now, beside chunks."""
        now, steps = self._clock(), list[Step]()
        if now >= self._offer_at:
            self._offer_at = now + OFFER_EVERY
            steps.append("offer")
        if now >= self._announce_at and any(device.heard_at is not None for device in self.devices.values()):
            self._announce_at = now + ANNOUNCE_EVERY
            steps.append("announce")
        return steps

    def next_due(self) -> float:
        """When `due` has something next."""
        return min(self._offer_at, self._announce_at)

    def coming(self) -> list[Range]:
        """What will be sent, for an announcement."""
        return self._wanted.ranges(MAX_RANGES)

    def next_chunk(self) -> int | None:
        """The number of the next chunk to send."""
        number = self._wanted.next(self._at)
        if number is None:
            return None
        self._wanted.discard(number)
        self._at, self.sent = number + 1, self.sent + 1
        if not self._wanted.size:
            self._announce_at = self._clock()  # who still misses something asks now
        return number

    def requested(self, device: str, missing: Iterable[Range]) -> None:
        """A device misses these chunks."""
        if self._heard(device) is None:
            return
        before = self._wanted.size
        listed = list(missing)
        self._wanted.add_ranges(listed)
        self._requested.add_ranges(listed)
        if self._wanted.size > before:
            self._announce_at = self._clock()

    def reported(self, device: str, state: State) -> None:
        """A device published its state."""
        if (known := self._heard(device)) is not None:
            known.state = state

    def _heard(self, name: str) -> Device | None:
        """The device; None for one that is not expected and may not join."""
        now = self._clock()
        if name not in self.devices:
            if not self._open_ended or len(self.devices) >= MAX_DEVICES:
                return None
            self._joined_at = now
        device = self.devices.setdefault(name, Device())
        device.heard_at = now
        return device

    def _is_silent(self, device: Device, now: float) -> bool:
        return now - (device.heard_at or self._started) >= self._timeout
