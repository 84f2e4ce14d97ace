"""The roll-outs that this device applies later, by layer. Owned by the desired config, which stores them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from edged.fleet import layers
from edged.fleet.layer_store import Waiting
from edged.fleet.layers import PushedLayer
from edged.fleet.rollout import BUSY_AT_MOST, Moment, delay
from edged.wire.layers import BadLayer, Layer


class _Delayed(msgspec.Struct, frozen=True):
    pushed: PushedLayer
    reason: str


def minute_of_day(now: float) -> int:
    """The minute of the local day at a Unix time."""
    local = time.localtime(now)
    return local.tm_hour * 60 + local.tm_min


class RolloutDelays:
    """See the module. `minute` gives the minute of the local day at a Unix time."""

    def __init__(self, device: str, minute: Callable[[float], int]) -> None:
        self._device = device
        self._minute = minute
        self._delayed: dict[str, _Delayed] = {}
        self._busy_since: dict[str, float] = {}  # when prompts became all that delays a layer

    @property
    def stored(self) -> Mapping[str, Waiting]:
        """What is stored, so that a restart without the broker goes on with it."""
        return {name: Waiting(one.pushed.payload, one.reason) for name, one in self._delayed.items()}

    def load(self, catalog: Collection[str], stored: Mapping[str, Waiting]) -> None:
        """What was stored; without what this version does not accept: the broker sends it again."""
        for name, one in stored.items():
            try:
                self._delayed[name] = _Delayed(layers.parse(catalog, one.payload), one.reason)
            except BadLayer:
                continue

    def why(self, name: str, pushed: PushedLayer, now: float, *, busy: bool) -> str | None:
        """Why the device does not apply a layer yet; None where it applies it now."""
        if pushed.layer.rollout is None:
            return None
        minute = self._minute(now)
        if (reason := delay(pushed.layer.rollout, self._device, Moment(now, minute))) is not None:
            self._busy_since.pop(name, None)
            return reason
        since = self._busy_since.setdefault(name, now) if busy else now
        too_long = now - since >= BUSY_AT_MOST
        return delay(pushed.layer.rollout, self._device, Moment(now, minute, busy=busy and not too_long))

    def due(self, now: float, *, busy: bool) -> list[tuple[str, bytes]]:
        """Layers whose reason has changed, or is gone, with the bytes that were pushed."""
        return [
            (name, one.pushed.payload)
            for name, one in self._delayed.items()
            if self.why(name, one.pushed, now, busy=busy) != one.reason
        ]

    def has(self, name: str, pushed: PushedLayer, why: str) -> bool:
        """Whether just this waits already, for this reason."""
        one = self._delayed.get(name)
        return one is not None and one.pushed.layer == pushed.layer and one.reason == why

    def reason(self, name: str) -> str:
        """Why a layer waits."""
        one = self._delayed.get(name)
        return one.reason if one is not None else "the roll-out has not come to this device yet"

    def wait(self, name: str, pushed: PushedLayer, why: str) -> None:
        """The layer is applied later."""
        self._delayed[name] = _Delayed(pushed, why)

    def remove(self, name: str) -> None:
        """The layer waits no longer: it, or another, is applied or tried."""
        self._delayed.pop(name, None)
        self._busy_since.pop(name, None)

    def rejected(self, name: str, payload: bytes) -> None:
        """A push was rejected; where it waited (it may have expired) it waits no longer."""
        one = self._delayed.get(name)
        if one is not None and one.pushed.payload == payload:
            self.remove(name)

    def check_newer(self, name: str, layer: Layer) -> None:
        """Whether a signed push may replace what waits: an earlier stage may not, after a halt. Raises BadLayer."""
        one = self._delayed.get(name)
        if one is None or one.pushed.layer == layer or one.pushed.layer.revision < layer.revision:
            return
        waits = one.pushed.layer.revision
        sentence = f"{layer.revision} is not above {waits}, which waits on this device; push a revision above {waits}"
        raise BadLayer("revision", sentence, layer.revision)
