"""The revision for the next push of a layer that is not signed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from edged.config import checks
from edged.core.errors import BadValue

Document = Mapping[str, Any]
_revision = checks.integer(0)


def next_revision(
    layer: str, current: bytes, reports: Iterable[Document], histories: Iterable[Iterable[Document]]
) -> int:
    """The revision after every one of this layer that is known, since the layer was last removed.

    `layer`: its name in reports. `current`: the payload at the broker, whose revision counts even where its settings
    cannot be used. `reports`, `histories`: of each device; the decisions newest first, also those that refused a layer.
    """
    found = [_of_payload(current)]
    for report in reports:
        in_force = report.get("in_force")
        found.append(in_force.get(layer) if isinstance(in_force, dict) else None)
        if report.get("layer") == layer:
            found.append(report.get("revision"))
    for decisions in histories:
        found += _decided(layer, decisions)
    return max((revision for revision in found if _is_revision(revision)), default=0) + 1


def _of_payload(payload: bytes) -> object:
    with suppress(ValueError, RecursionError):
        document = json.loads(payload)
        return document.get("revision") if isinstance(document, dict) else None
    return None


def _decided(layer: str, decisions: Iterable[Document]) -> Iterator[object]:
    """The revisions of a history, back to the removal of the layer."""
    for one in decisions:
        if one.get("layer") == layer:
            if one.get("phase") == "applied" and one.get("revision") is None:
                return
            yield one.get("revision")


def _is_revision(value: object) -> TypeGuard[int]:
    try:
        _revision("revision", value)
    except BadValue:
        return False
    return True
