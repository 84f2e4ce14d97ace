"""What Home Assistant's MQTT discovery finds of a device. Format: home-assistant.io/integrations/mqtt (discovery).

Templates are Jinja, run by Home Assistant. The text entity sends a prompt whose final alone is published (`stream`
false), so that the sensor of the last answer sees whole answers.
"""

from __future__ import annotations

from typing import Any, Final

from edged import __version__
from edged.wire import strict_json
from edged.wire.topics import Topics

REQUESTER: Final = "home-assistant"
MAX_STATE: Final = 250  # characters: Home Assistant refuses states over 255; the whole text is an attribute

_ANSWER = "{{ (value_json.error.message if value_json.error is defined else value_json.text)"
_ENTITIES: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("sensor", "status", {"name": "Status", "icon": "mdi:chip", "from": "status"}),
    ("sensor", "temperature", {
        "name": "Temperature", "from": "telemetry", "value_template": "{{ value_json.temperature_c }}",
        "device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement",
    }),
    ("sensor", "memory", {
        "name": "Memory in use", "from": "telemetry", "icon": "mdi:memory", "unit_of_measurement": "%",
        "state_class": "measurement",
        "value_template": "{{ (100 * value_json.memory.used_bytes / value_json.memory.total_bytes) | round(1)"
                          " if value_json.memory.total_bytes is defined else None }}",
    }),
    ("sensor", "processor", {
        "name": "Processor", "from": "telemetry", "icon": "mdi:cpu-64-bit", "unit_of_measurement": "%",
        "state_class": "measurement", "value_template": "{{ value_json.cpu.percent | default(None) }}",
    }),
    ("sensor", "speed", {
        "name": "Tokens per second", "from": "telemetry", "icon": "mdi:speedometer", "unit_of_measurement": "tok/s",
        "state_class": "measurement", "value_template": "{{ value_json.speed.tokens_per_second }}",
    }),
    ("sensor", "queue", {
        "name": "Prompts", "from": "telemetry", "icon": "mdi:tray-full", "state_class": "measurement",
        "value_template": "{{ value_json.queue.open }}",
    }),
    ("binary_sensor", "throttled", {
        "name": "Throttled", "from": "telemetry", "device_class": "problem", "entity_category": "diagnostic",
        "value_template": "{{ 'ON' if value_json.throttled else 'OFF' }}",
    }),
    ("binary_sensor", "findings", {
        "name": "Findings", "from": "health", "device_class": "problem", "entity_category": "diagnostic",
        "value_template": "{{ 'OFF' if value_json.state == 'ok' else 'ON' }}", "attributes_from": "health",
        "json_attributes_template":
            "{{ {'findings': value_json.findings | map(attribute='advice') | list} | tojson }}",
    }),
    ("text", "ask", {
        "name": "Ask", "icon": "mdi:chat-question", "min": 1, "max": 255, "mode": "text", "qos": 1,
        "command_template": '{"prompt": {{ value | tojson }}, "stream": false}',
    }),
    ("sensor", "answer", {
        "name": "Last answer", "icon": "mdi:chat-processing", "from": "answer", "attributes_from": "answer",
        "value_template": f"{_ANSWER} | truncate({MAX_STATE}, true, '…') }}}}",
        "json_attributes_template":
            "{{ {'text': value_json.text, 'reason': value_json.reason, 'id': value_json.id} | tojson }}",
    }),
)  # fmt: skip


def birth_topic(prefix: str) -> str:
    """Where Home Assistant publishes `online` after each of its starts."""
    return f"{prefix}/status"


def node(topics: Topics) -> str:
    """The name of one device in discovery topics."""
    return f"edged-{topics.fleet}-{topics.device}"


def discovery(topics: Topics, prefix: str) -> dict[str, bytes]:
    """The retained messages that make the entities of one device, by topic."""
    device = node(topics)
    return {
        f"{prefix}/{component}/{device}/{name}/config": strict_json.dumps(_config(topics, device, name, entity))
        for component, name, entity in _ENTITIES
    }


def _config(topics: Topics, device: str, name: str, entity: dict[str, Any]) -> dict[str, Any]:
    sources = {
        "status": topics.status,
        "telemetry": topics.telemetry,
        "health": topics.health,
        "answer": f"{topics.replies(REQUESTER)}{topics.device}/+",
    }
    config = {key: value for key, value in entity.items() if key not in {"from", "attributes_from"}}
    config |= {
        "unique_id": f"{device}-{name}",
        "object_id": f"{topics.device}_{name}",
        "device": {
            "identifiers": [device],
            "name": topics.device,
            "manufacturer": "edged",
            "model": f"edged in the fleet {topics.fleet}",
            "sw_version": __version__,
        },
        "origin": {"name": "edged", "sw_version": __version__},
    }
    if "from" in entity:
        config["state_topic"] = sources[entity["from"]]
    if "attributes_from" in entity:
        config["json_attributes_topic"] = sources[entity["attributes_from"]]
    if name == "ask":
        config["command_topic"] = f"{topics.own}/prompt/{REQUESTER}"
    if name not in {"status", "answer"}:  # these say something of a device that is offline, too
        config |= {
            "availability_topic": topics.status,
            "availability_template": "{{ 'offline' if value in ('offline', '') else 'online' }}",
        }
    return config
