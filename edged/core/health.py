"""The health of a device: findings, and the state that follows from them. Frozen data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Severity = Literal["degraded", "failing"]
State = Literal["ok", "degraded", "failing"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, and what to do.

    `since` is when it began (epoch seconds; corrected when the wall clock is set), `value` what was measured last and
    `limit` what it should keep to, both in the unit of the measure. `advice` is one sentence for a person.
    """

    code: str
    since: float
    value: float | str | None
    limit: float | str | None
    advice: str
    severity: Severity = "degraded"


class Health(msgspec.Struct, frozen=True):
    """The worst of the findings is the state; the findings are sorted, worst first, then by age."""

    state: State
    findings: tuple[Finding, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """A finding that `began`, `ended`, or got `worse` or `better`."""

    kind: Literal["began", "ended", "worse", "better"]
    finding: Finding


def health_of(findings: Iterable[Finding]) -> Health:
    """The health that follows from these findings."""
    ordered = tuple(sorted(findings, key=lambda finding: (finding.severity != "failing", finding.since, finding.code)))
    return Health(ordered[0].severity if ordered else "ok", ordered)


def changes(before: Health, after: Health) -> tuple[Change, ...]:
    """What is worth an event between two healths. Findings are the same by code; a new value alone is no change."""
    old = {finding.code: finding for finding in before.findings}
    new = {finding.code: finding for finding in after.findings}
    found = [Change("ended", finding) for code, finding in old.items() if code not in new]
    for code, finding in new.items():
        if code not in old:
            found.append(Change("began", finding))
        elif finding.severity != old[code].severity:
            found.append(Change("worse" if finding.severity == "failing" else "better", finding))
    return tuple(found)
