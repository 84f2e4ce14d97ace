"""Findings about the agent itself: no usable model or template, refused topics, a journal that fails."""

from __future__ import annotations

from collections.abc import Sequence

from edged.agent.model_state import Fallback, ModelFailure
from edged.core.health import Finding


def agent_findings(
    failure: ModelFailure | None,
    refused_topics: Sequence[str],
    refused_publish: str | None,
    journal_error: str | None,
    now: float,
    known: Sequence[Finding],
    *,
    broker_excess: bool = False,
    fallback: Fallback | None = None,
    template_problem: str = "",
) -> tuple[Finding, ...]:
    """The findings that hold now. One that held before keeps its `since`; `known` are those of before."""
    since = {finding.code: finding.since for finding in known}
    found: list[Finding] = []
    if failure is not None:
        code = f"model_{failure.code}"
        found.append(Finding(code, since.get(code, now), None, None, failure.message, "failing"))
    if fallback is not None:
        advice = (
            f"the model {fallback.wanted.source} cannot be loaded, so the last good one serves: "
            f"{fallback.failure.message.rstrip('.')}; then restart edged, or push another model"
        )
        found.append(Finding("model_fallback", since.get("model_fallback", now), None, None, advice))
    if refused_topics:
        advice = f"the broker refuses the subscription to {refused_topics[0]}; allow it in the broker's access list"
        code = "subscription_refused"
        found.append(Finding(code, since.get(code, now), len(refused_topics), 0, advice, "failing"))
    if refused_publish is not None:
        advice = f"the broker refuses messages to {refused_publish}; check its access list, its limits and its log"
        code = "publish_refused"
        found.append(Finding(code, since.get(code, now), None, None, advice))
    if broker_excess:
        advice = "the broker sent too much unacknowledged data; check its in-flight and packet-size limits"
        found.append(Finding("broker_excess", since.get("broker_excess", now), None, None, advice))
    if template_problem:
        code = "template_unusable"
        found.append(Finding(code, since.get(code, now), None, None, template_problem))
    if journal_error is not None:
        advice = (
            f"prompts and answers cannot be stored ({journal_error}); free space on the disk of state_dir, or repair it"
        )
        found.append(Finding("journal", since.get("journal", now), None, None, advice, "failing"))
    return tuple(found)
