"""A real Home Assistant finds the device, asks it and gets its answer; again after both were restarted together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Broker, Device

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]
DRIVER = Path(__file__).with_name("home_assistant_driver.py")
# The last release that runs on Python 3.11, and what its MQTT integration and its core require.
PACKAGES = (
    "homeassistant==2024.3.3", "paho-mqtt==1.6.1", "janus==1.0.0", "Pillow", "psutil-home-assistant",
    "aiohttp_cors==0.7.0", "aiohttp-fast-url-dispatcher==0.3.0", "aiohttp-zlib-ng", "fnv-hash-fast",
    "home-assistant-frontend==20240307.0", "SQLAlchemy<2.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if given := os.environ.get("HOME_ASSISTANT_PYTHON"):
        return given
    if sys.version_info[:2] != (3, 11):
        pytest.skip("this release of Home Assistant needs Python 3.11")
    folder = tmp_path_factory.mktemp("home-assistant")
    venv.create(folder, with_pip=True)
    program = str(folder / "bin/python")
    subprocess.run([program, "-m", "pip", "install", "-q", *PACKAGES], check=True, timeout=900)
    return program


def test_it_finds_the_device_asks_it_and_does_so_again_after_a_restart_of_all(
    python: str, device: Callable[..., Device], broker: Broker, tmp_path: Path
) -> None:
    made = device({"integrations": {"home_assistant": {"prefix": "homeassistant"}}, "telemetry": {"interval": "1s"}})

    def states(question: str) -> dict[str, Any]:
        command = [python, str(DRIVER), str(tmp_path / "home"), str(broker.port), "pi", question]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert 0 == result.returncode, result.stderr[-3000:]
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    first = states("one two three")
    assert "one two three" == str(first["sensor.pi_answer"]["text"]).strip()
    assert ("online", "off") == (first["sensor.pi_status"]["state"], first["binary_sensor.pi_throttled"]["state"])
    broker.stop()
    broker.start()
    made.stop()
    made.start()
    again = states("four five")
    assert "four five" == str(again["sensor.pi_answer"]["text"]).strip()
    assert set(first) == set(again)
