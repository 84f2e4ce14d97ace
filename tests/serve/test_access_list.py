"""A device, `edgectl` and `edgectl serve` behind a mosquitto with the access list that `edgectl acl` makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged.ctl.main import main
from tests.secured_broker import PLAIN, password_of, secured
from tests.support import Device, running, wait_until

USERS = ("pi", "anna", "bob", "ops", "web", "hass")


@pytest.mark.slow
def test_everybody_can_do_their_work_behind_the_access_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Callable[..., str]
) -> None:
    def words(user: str, port: int) -> list[str]:
        (tmp_path / user).write_text(password_of(user))
        broker = ["--url", f"mqtt://127.0.0.1:{port}", "--fleet", "test"]
        return [*broker, "--username", user, "--password-file", str(tmp_path / user)]

    def edgectl(user: str, *given: str) -> tuple[int, Any, str]:
        code = main([*given, *words(user, broker.port)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    names = ("--device=pi=attic", "--requester=anna", "--requester=bob=pi", "--operator=ops", "--console=web")
    assert 0 == main(["acl", "--fleet", "test", *names, "--home-assistant=hass"])
    with secured(tmp_path, capsys.readouterr().out, USERS, PLAIN) as broker:
        words("pi", broker.port)
        config = {
            "identity": {"fleet": "test", "device": "pi", "groups": ["attic"]},
            "mqtt": {"url": broker.url, "username": "pi", "password_file": str(tmp_path / "pi")},
            "integrations": {"home_assistant": {"prefix": "homeassistant"}},
        }
        with running(Device(tmp_path, broker, config)) as device:
            wait_until(lambda: "online" in edgectl("ops", "status", "--wait", "0")[1], 30, "the device is online")
            for user in ("anna", "bob", "ops"):
                assert (0, "hello \n") == edgectl(user, "prompt", "hello", "--device", "pi")[:2], user
            assert 0 == edgectl("anna", "prompt", "hello", "--group", "attic")[0]
            code, _, said = edgectl("anna", "prompt", "hello", "--device", "pi", "--requester", "bob")
            assert (3, True) == (code, "refused a message to edged/v1/test/device/pi/prompt/bob" in said)
            layer = tmp_path / "layer.yaml"
            layer.write_text("generation: {max_tokens: 9}")
            for target in ((), ("--group", "attic"), ("--device", "pi")):
                code, _, said = edgectl("anna", "config", "push", str(layer), *target)
                assert (3, True) == (code, "not authorized" in said), target
                assert 0 == edgectl("ops", "config", "push", str(layer), *target)[0], target
            health = json.loads(edgectl("ops", "status", "--json")[1])["pi"]["health"]
            assert [] == [finding for finding in health["findings"] if "refused" in finding["code"]]
            address = serve(*words("web", broker.port), "--requester", "web")
            wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200, 10, "the console is connected")
            messages = [{"role": "user", "content": "hello"}]
            asked = httpx.post(f"{address}/v1/chat/completions", json={"model": "pi", "messages": messages}, timeout=30)
            assert "hello" in asked.json()["choices"][0]["message"]["content"]
            wanted = {"layer": "fleet", "settings": "generation: {max_tokens: 8}"}
            pushed = httpx.post(f"{address}/console/config/push", json=wanted, timeout=30)
            assert pushed.status_code >= 400
            assert "not authorized" in pushed.text
            assert 0 == device.stop()
