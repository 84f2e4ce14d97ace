"""The retained document that operators share about a roll-out: its stages, and how far it is. Bytes ↔ type.

Devices do not read it: the layer has all that they need.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from edged.config import checks
from edged.core.errors import BadValue
from edged.wire import rollouts, strict_json
from edged.wire.prompts import timestamp
from edged.wire.replies import rfc3339

State = Literal["running", "halted", "stopped", "done"]
MOST_STAGES = 20


class Schedule(msgspec.Struct, frozen=True):
    """One roll-out. `layer`: `fleet` or `group:NAME`. `revision`: the layer's first of this roll-out.

    The present stage is `percent` since the Unix time `since`; the devices `absent` were offline when it began.
    `max_failures`: the percentage of a stage's devices that may fail. `why`: how it came to `state`.
    """

    id: str
    layer: str
    stages: tuple[float, ...]
    soak: float
    max_failures: float
    revision: int
    percent: float
    since: float
    started: float
    absent: frozenset[str] = frozenset()
    state: State = "running"
    why: str = ""


def topic(fleet: str, rollout: str) -> str:
    """Where the document is retained."""
    return f"edged/v1/{fleet}/rollout/{rollout}"


def schedule(of: Schedule) -> bytes:
    """The document."""
    return strict_json.dumps(
        {
            "id": of.id,
            "layer": of.layer,
            "stages": list(of.stages),
            "soak_s": of.soak,
            "max_failures": of.max_failures,
            "revision": of.revision,
            "percent": of.percent,
            "since": rfc3339(of.since),
            "started": rfc3339(of.started),
            "absent": sorted(of.absent),
            "state": of.state,
            "why": of.why,
        }
    )


def stages(path: str, value: object) -> tuple[float, ...]:
    """The check of stages: percentages that grow to 100. Raises BadValue."""
    found = tuple(checks.list_of(checks.number(0, 100), high=MOST_STAGES)(path, value))
    if not found or found[0] <= 0 or found[-1] != 100 or list(found) != sorted(set(found)):
        raise BadValue(path, "must be percentages that grow up to 100, such as 1,5,25,100")
    return found


def _layer(path: str, value: object) -> str:
    text = str(value)
    if text != "fleet" and not (text.startswith("group:") and checks.NAME.match(text[6:])):
        raise BadValue(path, f"must be fleet or group:NAME, not {checks.shown(value)}")
    return text


_KEYS: dict[str, checks.Check] = {
    "id": rollouts.ID,
    "layer": _layer,
    "stages": stages,
    "soak_s": checks.number(0, 10_000_000),
    "max_failures": checks.number(0, 100),
    "revision": checks.integer(0),
    "percent": checks.number(0, 100),
    "since": timestamp,
    "started": timestamp,
    "absent": checks.list_of(checks.text(high=63), high=1_000_000),
    "state": checks.one_of(*get_args(State)),
    "why": checks.text(low=0),
}


def parse(payload: bytes) -> Schedule:
    """The document's bytes → a schedule. Raises BadValue."""
    document = strict_json.loads(payload)
    if not isinstance(document, dict):
        raise BadValue("", "must be one JSON object")
    known: dict[str, Any] = {key: document[key] for key in _KEYS if key in document}
    found = checks.record("", known, _KEYS, required=_KEYS)
    soak, missing = found.pop("soak_s"), frozenset(found.pop("absent"))
    return Schedule(**found, soak=soak, absent=missing)
