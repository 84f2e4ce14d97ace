"""`edgectl serve` as a process of its own, beside a device with the fake worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.serve.scripted_device import Script, ScriptedDevice
from tests.support import Broker, free_port


@pytest.fixture
def serve(broker: Broker) -> Iterator[Callable[..., str]]:
    """Starts the server with these options and returns its address, once it is connected to the broker."""
    with ExitStack() as stack:

        def start(*options: str) -> str:
            port = free_port()
            command = [sys.executable, "-m", "edged.commands.edgectl", "serve", "--listen", f"127.0.0.1:{port}"]
            command += ["--url", broker.url, "--fleet", "test", "--requester", "web", *options]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.terminate)
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 20
            while time.monotonic() < until:
                try:
                    if httpx.get(f"{address}/healthz", timeout=2).status_code in {200, 401}:
                        return address
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    break
                time.sleep(0.05)  # it listens a moment after it was started; nothing announces that
            raise AssertionError("edgectl serve did not start")

        yield start


@pytest.fixture
def scripted(broker: Broker) -> Iterator[Callable[[Script], ScriptedDevice]]:
    """Makes the device `scripted`, which answers with what the script gives."""
    with ExitStack() as stack:

        def make(script: Script) -> ScriptedDevice:
            made = ScriptedDevice(broker.port, script)
            stack.callback(made.stop)
            return made

        yield make
