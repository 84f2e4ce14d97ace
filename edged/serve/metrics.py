"""Figures for Prometheus: every device's telemetry and health, in base units.

Text format: prometheus.io/docs/instrumenting/exposition_formats. Names follow prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from edged.serve.fleet_state import STATUSES, Device, FleetState, number

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
HEALTH: Final = ("ok", "degraded", "failing")


class Figure(msgspec.Struct, frozen=True):
    """A figure of the telemetry: where it is, and what it is multiplied with to be in base units."""

    name: str
    help: str
    path: tuple[str, ...]
    factor: float = 1.0
    kind: str = "gauge"


FIGURES: Final = (
    Figure("edged_uptime_seconds", "Time since the board started.", ("uptime_s",)),
    Figure("edged_cpu_usage_ratio", "Share of all processors in use, 0 to 1.", ("cpu", "percent"), 0.01),
    Figure("edged_memory_total_bytes", "Memory of the board.", ("memory", "total_bytes")),
    Figure("edged_memory_used_bytes", "Memory in use on the board.", ("memory", "used_bytes")),
    Figure("edged_memory_available_bytes", "Memory that is free for a program.", ("memory", "available_bytes")),
    Figure("edged_swap_used_bytes", "Swap in use on the board.", ("memory", "swap_used_bytes")),
    Figure("edged_temperature_celsius", "The hottest sensor of the processor.", ("temperature_c",)),
    Figure("edged_throttled", "1 while the processor is held below its speed.", ("throttled",)),
    Figure("edged_disk_total_bytes", "Size of the file system of the state folder.", ("disk", "total_bytes")),
    Figure("edged_disk_free_bytes", "Free space there.", ("disk", "free_bytes")),
    Figure("edged_agent_resident_memory_bytes", "Resident memory of the agent.", ("agent", "rss_bytes")),
    Figure("edged_worker_resident_memory_bytes", "Resident memory of the worker.", ("worker", "rss_bytes")),
    Figure("edged_generation_tokens_per_second", "Running mean speed of finished answers.",
          ("speed", "tokens_per_second")),
    Figure("edged_time_to_first_token_seconds", "Mean time from computation to the first text.",
          ("speed", "ttft_ms"), 0.001),
    Figure("edged_prompts_open", "Prompts that are accepted and not answered yet.", ("queue", "open")),
    Figure("edged_prompts_running", "Prompts that are computed.", ("queue", "running")),
    Figure("edged_prompts_answered_total", "Prompts answered since the agent started.", ("queue", "answered"),
          kind="counter"),
    Figure("edged_prompts_refused_total", "Prompts refused since the agent started.", ("queue", "refused"),
          kind="counter"),
)  # fmt: skip


def render(state: FleetState) -> str:
    """All figures of all devices."""
    devices = sorted(state.devices.values(), key=lambda device: device.name)
    lines: list[str] = []
    lines += _family("edged_device_status", "1 for the status that the device has.", _statuses(devices))
    lines += _family("edged_device_health", "1 for the health that the device reports.", _healths(devices))
    lines += _family("edged_device_finding", "1 for each finding of the device's health.", _findings(devices))
    lines += _family("edged_device_info", "Version and model of the device; always 1.", _infos(devices))
    lines += _family("edged_config_revision", "Revision of each config layer in force.", _revisions(devices))
    seen = (({"device": device.name}, device.seen_at) for device in devices if device.seen_at)
    lines += _family("edged_telemetry_timestamp_seconds", "When the last telemetry arrived, Unix time.", seen)
    for figure in FIGURES:
        values = (({"device": device.name}, _at(device.telemetry, figure)) for device in devices)
        known = ((labels, value) for labels, value in values if value is not None)
        lines += _family(figure.name, figure.help, known, figure.kind)
    return "\n".join(lines) + "\n"


def _family(
    name: str, text: str, samples: Iterable[tuple[dict[str, str], float]], kind: str = "gauge"
) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{name}{{{inner}}} {value:.10g}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")[:200]


def _at(document: dict[str, Any], figure: Figure) -> float | None:
    value: Any = document
    for key in figure.path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return float(value)
    found = number(value)
    return None if found is None else found * figure.factor


def _statuses(devices: Iterable[Device]) -> Iterator[tuple[dict[str, str], float]]:
    for device in devices:
        for status in STATUSES:
            yield {"device": device.name, "status": status}, float(device.status == status)


def _healths(devices: Iterable[Device]) -> Iterator[tuple[dict[str, str], float]]:
    for device in devices:
        if device.health:
            for state in HEALTH:
                yield {"device": device.name, "health": state}, float(device.health.get("state") == state)


def _findings(devices: Iterable[Device]) -> Iterator[tuple[dict[str, str], float]]:
    for device in devices:
        findings = device.health.get("findings")
        codes = {
            one["code"]
            for one in (findings if isinstance(findings, list) else [])[:100]
            if isinstance(one, dict) and isinstance(one.get("code"), str)
        }
        for code in sorted(codes):
            yield {"device": device.name, "code": code}, 1.0


def _infos(devices: Iterable[Device]) -> Iterator[tuple[dict[str, str], float]]:
    for device in devices:
        version = device.health.get("version")
        yield (
            {"device": device.name, "version": version if isinstance(version, str) else "", "model": device.model},
            1.0,
        )


def _revisions(devices: Iterable[Device]) -> Iterator[tuple[dict[str, str], float]]:
    for device in devices:
        layers = device.reported.get("in_force")
        for layer, revision in sorted(layers.items())[:50] if isinstance(layers, dict) else []:
            if (value := number(revision)) is not None:
                yield {"device": device.name, "layer": str(layer)}, value
