"""Formats the whole way: a real daemon and worker, a tiny model of random weights that would rather write junk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.schema_check import obeys
from tests.support import Broker, Client, Device, running
from tests.tiny import make_gguf

pytestmark = pytest.mark.broker
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["small", "big"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
BOMB = {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(10, 40)]}


@pytest.fixture(scope="module")
def tiny(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Client]]:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("formats")
    client = Client(broker.port).subscribe("edged/v1/formats/#")
    config = {
        "identity": {"fleet": "formats", "device": "pi"},
        "model": {"source": str(make_gguf(folder / "tiny.gguf")), "context": 512},
        "generation": {"stop": ["e"], "temperature": 2},
    }
    device = Device(folder, broker, config, fake=False)
    device.root = "edged/v1/formats/device/pi"
    with running(device):
        client.status("online", 60)
        yield device, client
        assert 0 == device.stop()
    client.close()


def ask(tiny: tuple[Device, Client], prompt_id: str, **body: Any) -> dict[str, Any]:
    device, client = tiny
    client.publish(f"{device.root}/prompt/me", {"id": prompt_id, "prompt": "Which city?", **body})
    return client.final(prompt_id, 60)


def test_p08_a_schema_is_obeyed_over_mqtt(tiny: tuple[Device, Client]) -> None:
    """Also where the device's own stop text is in the answer: a format says itself where the output ends."""
    final = ask(tiny, "schema", format={"type": "json_schema", "schema": SCHEMA})
    assert "stop" == final["reason"], final
    assert obeys(final["text"], SCHEMA)
    text = ""
    for document in tiny[1].documents("schema"):
        if "seq" in document:
            text = text[: document["at"]] + document["text"]
    assert final["text"].startswith(text)


def test_p08_a_choice_and_a_pattern_are_obeyed_over_mqtt(tiny: tuple[Device, Client]) -> None:
    final = ask(tiny, "choice", format={"type": "choice", "choices": ["東京", "Kyōto"]})
    assert ("stop", True) == (final["reason"], final["text"] in {"東京", "Kyōto"})
    final = ask(tiny, "regex", format={"type": "regex", "pattern": "[0-9]{3}-[0-9]{4}"})
    assert "stop" == final["reason"]
    assert "".join(c for c in final["text"] if c.isdigit()) == final["text"].replace("-", "")
    assert 8 == len(final["text"])


def test_p08_a_cut_answer_is_failed_and_keeps_its_text(tiny: tuple[Device, Client]) -> None:
    final = ask(tiny, "cut", max_tokens=4, format={"type": "json_schema", "schema": SCHEMA})
    assert ("failed", "format_incomplete") == (final["reason"], final["error"]["code"])
    assert final["text"].startswith("{")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(final["text"])


@pytest.mark.parametrize(
    ("prompt_id", "wanted", "says"),
    [
        ("lookahead", {"type": "regex", "pattern": "(?=a)b"}, "(?=a)b"),
        ("one-of", {"type": "json_schema", "schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf"),
        ("keyword", {"type": "json_schema", "schema": {"not": {}}}, "format.schema.not"),
        ("bomb", {"type": "json_schema", "schema": BOMB}, "too complex"),
    ],
)
def test_p08_a_bad_format_is_invalid_and_others_are_answered(
    tiny: tuple[Device, Client], prompt_id: str, wanted: dict[str, Any], says: str
) -> None:
    final = ask(tiny, prompt_id, format=wanted)
    assert "invalid" == final["reason"]
    assert says in final["error"]["message"]
    assert "stop" == ask(tiny, f"after-{prompt_id}", format={"type": "choice", "choices": ["fine"]})["reason"]
