"""Fixtures: one broker for all, a device with a fake worker, a client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, Broker, Client, Device, mosquitto, running

# What the embedded broker can show; the rules of retained messages and of take-over it cannot.
EMBEDDED = {"test_promises.py", "test_bad_input.py", "test_real_model.py", "test_format_prompts.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without mosquitto the tests of the route run against the embedded broker, those of a broker's finer rules not."""
    if mosquitto() is not None:
        return
    skip = pytest.mark.skip(reason="needs mosquitto: the embedded broker does not know this")
    for item in items:
        uses_broker = hasattr(getattr(item, "module", None), "Broker") or "broker" in getattr(item, "fixturenames", ())
        if uses_broker and (item.path.name not in EMBEDDED or item.get_closest_marker("mosquitto")):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    started = Broker(tmp_path_factory.mktemp("broker"), "max_queued_messages 100000\n").start()
    yield started
    started.stop()


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    made = Client(broker.port)
    yield made
    made.close()


@pytest.fixture
def device(broker: Broker, tmp_path: Path, client: Client) -> Iterator[Callable[..., Device]]:
    """Makes and starts a device with the fake worker; waits until it is online unless told otherwise."""
    from contextlib import ExitStack

    client.subscribe("edged/v1/test/#")
    with ExitStack() as stack:

        def make(
            config: dict[str, Any] | None = None, *, until: str = "online", patches: tuple[str, ...] = ()
        ) -> Device:
            client.clear()
            made = stack.enter_context(running(Device(tmp_path, broker, config, patches=patches)))
            client.wait(
                lambda m: m.topic == f"{made.root}/status" and m.payload == until.encode(),
                30,
                f"status {until}",
            )
            return made

        yield make
    broker.forget_session("edged-test-pi")  # what waits there for this device is not the next test's
    for topic in ("status", "health", "config", "config/reported", "config/history"):
        client.publish(f"edged/v1/test/device/pi/{topic}", b"", retain=True)


@pytest.fixture(scope="session")
def real_store() -> Path:
    """A state folder with the default model in its store: fetched once, kept beside the checkout's other state."""
    state = ROOT / ".edged" / "state"
    environment = {**os.environ, "EDGED_STATE_DIR": str(state)}
    subprocess.run(
        [sys.executable, "-m", "edged", "model", "pull", "smollm2-135m-instruct"], env=environment, check=True
    )
    return state


@pytest.fixture(scope="session")
def real_gguf(real_store: Path) -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf."""
    (path,) = real_store.glob("models/sha256-*/*.gguf")
    return path
