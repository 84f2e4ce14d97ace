"""A model's bytes over the broker: the offer, chunks, what is missing, what will be sent, a device's state.

All topics are below `model/{digest}/`, so that a signed offer is valid for one model alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from edged.config import checks
from edged.core.chunk_set import Range
from edged.core.errors import BadValue
from edged.wire import strict_json
from edged.wire.hash_tree import proof_size
from edged.wire.layers import Signature, signature
from edged.wire.prompts import timestamp
from edged.wire.replies import rfc3339

CHUNK = 65_536
"""Bytes of each chunk but the last."""
MAX_SIZE = CHUNK << 20
"""64 GiB."""
MAX_OFFER = 32_768  # bytes
MAX_RANGES = 256
MAX_STATE = 4_096
"""Bytes of a state; of a longer one nothing is read."""
_MAX_RANGES_BYTES = 16_384
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,122}\.gguf\Z")
_ROOT = re.compile(r"[0-9a-f]{64}\Z")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,6})\Z")

StateName = Literal["waiting", "receiving", "storing", "stored", "refused", "failed"]
ENDED = frozenset({"stored", "refused", "failed"})
"""States after which the device does nothing more about this offer."""


class Offer(msgspec.Struct, frozen=True):
    """A model that is about to be sent. `root` is that of the hash tree over its chunks.

    It is for these `devices`, this `group`, or (both empty) for the whole fleet.
    """

    name: str
    size: int
    root: str
    devices: tuple[str, ...] = ()
    group: str | None = None
    expires_at: float | None = None
    signature: Signature | None = None

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return -(-self.size // CHUNK)

    def is_for(self, device: str, groups: Sequence[str]) -> bool:
        """Whether this device is meant."""
        if self.devices:
            return device in self.devices
        return self.group is None or self.group in groups

    def chunk_size(self, number: int) -> int:
        """Bytes of a chunk's data."""
        return min(CHUNK, self.size - number * CHUNK)

    def payload_size(self, number: int) -> int:
        """Bytes of a chunk's message: its proof, then its data."""
        return proof_size(number, self.count) + self.chunk_size(number)


class State(msgspec.Struct, frozen=True):
    """What a device does about an offer. `done` 0 to 1; `reason` a sentence for people."""

    state: StateName
    done: float = 0.0
    reason: str = ""


_device_name = checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -, not starting with -")
_OFFER_KEYS: dict[str, checks.Check] = {
    "name": checks.text(pattern=NAME, like="a file name of A-Z, a-z, 0-9, ., _ and - that ends in .gguf"),
    "size": checks.integer(1, MAX_SIZE),
    "root": checks.text(pattern=_ROOT, like="64 hex digits"),
    "devices": checks.list_of(_device_name, high=400, distinct=True),
    "group": _device_name,
    "expires_at": timestamp,
    "signature": signature,
}


def parse_offer(payload: bytes) -> Offer:
    """An offer. Raises BadValue."""
    if len(payload) > MAX_OFFER:
        raise BadValue("", f"the offer has {len(payload)} bytes, above {MAX_OFFER}")
    document = strict_json.loads(payload)
    found = Offer(**checks.record("", document, _OFFER_KEYS, required=("name", "size", "root")))
    if found.devices and found.group is not None:
        raise BadValue("group", "cannot be given beside devices; give one of the two")
    if "devices" in document and not found.devices:
        raise BadValue("devices", "is empty; leave it out to offer the model to the whole fleet")
    return found


def offer(offered: Offer) -> dict[str, Any]:
    """The document of an offer, without a signature."""
    document: dict[str, Any] = {"name": offered.name, "size": offered.size, "root": offered.root}
    if offered.devices:
        document["devices"] = list(offered.devices)
    if offered.group is not None:
        document["group"] = offered.group
    if offered.expires_at is not None:
        document["expires_at"] = rfc3339(offered.expires_at)
    return document


def parse_number(text: str) -> int | None:
    """The number of a chunk in its topic; None where it is none."""
    return int(text) if _NUMBER.match(text) else None


def ranges(given: Sequence[Range]) -> bytes:
    """What is missing, or will be sent: each range from a first chunk to before another."""
    return strict_json.dumps({"ranges": given})


def parse_ranges(payload: bytes) -> list[Range]:
    """Ranges of chunks. Raises BadValue."""
    if len(payload) > _MAX_RANGES_BYTES:
        raise BadValue("", f"has {len(payload)} bytes, above {_MAX_RANGES_BYTES}")
    found = checks.record("", strict_json.loads(payload), {"ranges": _ranges}, required=("ranges",))
    listed: list[Range] = found["ranges"]
    return listed


def _ranges(path: str, value: object) -> list[Range]:
    if not isinstance(value, list) or len(value) > MAX_RANGES:
        raise BadValue(path, f"must be a list of at most {MAX_RANGES} pairs")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise BadValue(path, f"must be pairs of whole numbers, not {checks.shown(pair)}")
        if not 0 <= pair[0] < pair[1]:
            raise BadValue(path, f"must be pairs of a first number and one above the last, not {checks.shown(pair)}")
    return [(first, end) for first, end in value]


def state(now: State) -> bytes:
    """The state of a device."""
    return strict_json.dumps({"state": now.state, "done": round(now.done, 3), "reason": now.reason})


def parse_state(payload: bytes) -> State | None:
    """A device's state; None where it cannot be read. Keys that are not known are ignored."""
    if len(payload) > MAX_STATE:
        return None
    try:
        return msgspec.json.decode(payload, type=State)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
