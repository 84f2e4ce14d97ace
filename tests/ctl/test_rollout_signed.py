"""Signed roll-outs: what an operator signs is what another operator has signed, not what anyone has put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edged.ctl import keys
from edged.ctl.main import main
from edged.wire import signatures
from tests.support import Broker, Client, as_json

pytestmark = pytest.mark.broker
FLEET, TOPIC = "signing", "edged/v1/signing/config"


def retained(client: Client) -> dict[str, Any]:
    client.clear()
    client.subscribe(TOPIC)
    found: dict[str, Any] = client.wait(lambda message: as_json(message) if message.retain else None)
    return found


def test_p05_the_layer_of_another_operator_is_signed_again_only_where_its_signature_is_verified(
    broker: Broker, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        keys.new(name, tmp_path, as_json=True)
    first, second = (keys.load(tmp_path / f"{name}.pem") for name in ("first", "second"))
    (tmp_path / "settings.yaml").write_text("generation: {max_tokens: 33}\n")
    known = tmp_path / "known.yaml"
    known.write_text(yaml.safe_dump({"identity": {"fleet": FLEET}, "trust": {"keys": {"first": first.public}}}))

    def rollout(*words: str) -> tuple[int, str]:
        code = main(("rollout", *words, "--url", broker.url, "--fleet", FLEET))
        return code, capsys.readouterr().err

    with_first, with_second = ("--key", str(tmp_path / "first.pem")), ("--key", str(tmp_path / "second.pem"))
    assert (0, "") == rollout("start", str(tmp_path / "settings.yaml"), "--id", "r", *with_first)
    code, why = rollout("halt")
    assert (2, True) == (code, "give the key to sign the next stage" in why)
    code, why = rollout("halt", *with_second)
    assert (2, True) == (code, "give its public key in trust.keys" in why)
    assert (0, "") == rollout("halt", *with_second, "--config", str(known))
    layer = retained(client)
    assert (True, "second") == (layer["rollout"]["halted"], layer["signature"]["key"])
    assert signatures.is_signed_by(second.public, TOPIC, layer)
    forged = {**layer, "settings": {"generation": {"max_tokens": 1}}}
    client.publish(TOPIC, forged, retain=True)
    code, why = rollout("resume", *with_second)
    assert (2, True) == (code, "was not signed with the key second" in why)
    assert forged == retained(client)
    for topic in (TOPIC, f"edged/v1/{FLEET}/rollout/r"):
        client.publish(topic, b"", retain=True)
