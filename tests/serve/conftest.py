"""`edgectl serve` as a process of its own, beside a device with the fake worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.serve.scripted_device import Script, ScriptedDevice
from tests.support import Broker, free_port, wait_until


def start_server(broker: Broker, stack: ExitStack, *options: str) -> str:
    """Starts the server until the stack ends; returns its address once it is connected to the broker."""
    port = free_port()
    command = [sys.executable, "-m", "edged.commands.edgectl", "serve", "--listen", f"127.0.0.1:{port}"]
    command += ["--url", broker.url, "--fleet", "test", "--requester", "web", *options]
    process = stack.enter_context(subprocess.Popen(command))
    stack.callback(process.terminate)
    address = f"http://127.0.0.1:{port}"

    def connected() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{address}/healthz", timeout=2).status_code in {200, 401}
        except httpx.TransportError:
            return False

    wait_until(connected, 20, "edgectl serve is connected", every=0.05)
    return address


@pytest.fixture
def serve(broker: Broker) -> Iterator[Callable[..., str]]:
    """Starts the server with these options and returns its address, once it is connected to the broker."""
    with ExitStack() as stack:
        yield lambda *options: start_server(broker, stack, *options)


@pytest.fixture(scope="module")
def server(broker: Broker) -> Iterator[str]:
    """The address of a server for all tests of a module."""
    with ExitStack() as stack:
        yield start_server(broker, stack)


@pytest.fixture
def scripted(broker: Broker) -> Iterator[Callable[[Script], ScriptedDevice]]:
    """Makes the device `scripted`, which answers with what the script gives."""
    with ExitStack() as stack:

        def make(script: Script) -> ScriptedDevice:
            made = ScriptedDevice(broker.port, script)
            stack.callback(made.stop)
            return made

        yield make
