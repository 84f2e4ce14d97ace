"""The entities that Home Assistant finds, and their templates on real documents."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from edged.core.reading import Cpu, Memory, Reading
from edged.wire import documents
from edged.wire.home_assistant import discovery
from edged.wire.topics import Topics

FRAME = documents.Frame(1_700_000_000.0, "boot", True)
READING = Reading(
    1_700_000_000.0, 1.0, cpu=Cpu(percent=12.0), memory=Memory(4_000, 3_000, 1_000, 0, 0), temperature_c=51.5
)
BARE = Reading(1_700_000_000.0, 1.0)


def telemetry(reading: Reading) -> Any:
    queue = documents.Queue(3, 1, 64, 0, 0, 0, 0)
    return json.loads(documents.telemetry(FRAME, reading, documents.Speed(49.1, 40.0), queue))


def configs() -> dict[str, dict[str, Any]]:
    messages = discovery(Topics("home", "pi"), "homeassistant")
    return {topic.split("/")[3]: json.loads(payload) for topic, payload in messages.items()}


def rendered(template: str, document: Any, value: str = "") -> str:
    return str(jinja2.Environment().from_string(template).render(value_json=document, value=value))


def test_each_entity_has_a_topic_and_an_id_of_its_own() -> None:
    messages = discovery(Topics("home", "pi"), "ha/x")
    assert "ha/x/sensor/edged-home-pi/temperature/config" in messages
    assert len(messages) == len({config["unique_id"] for config in configs().values()})
    assert {"edged-home-pi"} == {config["device"]["identifiers"][0] for config in configs().values()}


@pytest.mark.parametrize(
    ("entity", "expected"),
    [("temperature", "51.5"), ("memory", "25.0"), ("processor", "12.0"), ("speed", "49.1"), ("queue", "3"),
     ("throttled", "OFF")],
)  # fmt: skip
def test_readings_become_states(entity: str, expected: str) -> None:
    assert expected == rendered(configs()[entity]["value_template"], telemetry(READING))


def test_what_a_board_cannot_measure_is_unknown() -> None:
    names = ("temperature", "memory", "processor", "throttled")
    templates = [configs()[name]["value_template"] for name in names]
    assert ["None", "None", "None", "OFF"] == [rendered(template, telemetry(BARE)) for template in templates]


def test_findings_are_a_problem() -> None:
    config = configs()["findings"]
    health = {"state": "degraded", "findings": [{"code": "throttled", "advice": "cool the board"}]}
    assert ["ON", "OFF"] == [rendered(config["value_template"], given) for given in (health, {"state": "ok"})]
    assert {"findings": ["cool the board"]} == json.loads(rendered(config["json_attributes_template"], health))


def test_a_text_becomes_a_prompt_whatever_is_in_it() -> None:
    text = 'say "hi" <b> \\ {{ 7 }} é'
    prompt = json.loads(rendered(configs()["ask"]["command_template"], None, text))
    assert {"prompt": text, "stream": False} == prompt


def test_an_answer_is_cut_to_what_a_state_may_hold() -> None:
    config = configs()["answer"]
    final = {"id": "1", "final": True, "reason": "stop", "text": "x" * 400}
    state = rendered(config["value_template"], final)
    assert 251 >= len(state) > 200
    assert 400 == len(json.loads(rendered(config["json_attributes_template"], final))["text"])
    failed = {"id": "1", "reason": "busy", "text": "", "error": {"message": "try again"}}
    assert "try again" == rendered(config["value_template"], failed)


def test_only_the_status_and_the_answer_of_an_offline_device_are_available() -> None:
    assert {"status", "answer"} == {name for name, one in configs().items() if "availability_topic" not in one}
    template = configs()["ask"]["availability_template"]
    words = ("online", "starting", "safe", "offline", "")
    assert ["online", "online", "online", "offline", "offline"] == [rendered(template, None, word) for word in words]
