"""One stream for many devices, simulated: sender and devices are the real machines, time and losses are drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest

from edged.config.schema import Trust as OwnerTrust
from edged.ctl.push_run import PushRun
from edged.fleet import reception_actions as r
from edged.fleet.reception import Reception
from edged.fleet.trust import Trust, TrustRecord
from edged.wire import model_push
from edged.wire.model_push import CHUNK, Offer

DIGEST, COUNT = f"sha256:{'a' * 64}", 60
OFFER = Offer("m.gguf", COUNT * CHUNK, "0" * 64)
OFFERED = json.dumps(model_push.offer(OFFER)).encode()
PAYLOADS = [bytes(OFFER.payload_size(number)) for number in range(COUNT)]
STEP = 0.05  # seconds, in which one chunk is sent


class Fleet:
    """Devices that lose each message with the probability `loss`."""

    def __init__(self, devices: int, loss: float, seed: int) -> None:
        self.now = 0.0
        self.draw = random.Random(seed)
        self.loss = loss
        self.requests = self.chunks = 0
        trust = Trust(OwnerTrust(), TrustRecord())
        self.devices = {
            f"pi-{number}": Reception(
                f"pi-{number}",
                (),
                lambda: trust,
                lambda _digest: 10**12,
                lambda _digest: False,
                lambda: self.now,
                lambda: 0.0,
                random.Random(number).uniform,
            )
            for number in range(devices)
        }
        self.run = PushRun(COUNT, self.devices, lambda: self.now, 60.0, open_ended=True)

    def play(self, seconds: float) -> None:
        while not self.run.finished and self.now < seconds:
            for step in self.run.due():
                coming = model_push.ranges(self.run.coming())
                self.send(
                    lambda device, step=step, coming=coming: (
                        device.offered(DIGEST, "topic", OFFERED) if step == "offer" else device.sending(DIGEST, coming)
                    )
                )
            if (number := self.run.next_chunk()) is not None:
                self.chunks += 1
                self.send(lambda device, number=number: device.chunk(DIGEST, number, PAYLOADS[number]))
            for name, device in self.devices.items():
                self.carry_out(name, device.tick())
            self.now += STEP

    def send(self, message: object) -> None:
        for name, device in self.devices.items():
            if self.draw.random() >= self.loss:
                self.carry_out(name, message(device))

    def carry_out(self, name: str, actions: Iterable[r.Action]) -> None:
        device = self.devices[name]
        for action in actions:
            match action:
                case r.Open():
                    self.carry_out(name, device.opened([]))
                case r.Write(number=number):
                    self.carry_out(name, device.written(number, whole=True))
                case r.Store():
                    self.carry_out(name, device.stored(None))
                case r.Request(missing=missing):
                    self.requests += 1
                    self.run.requested(name, missing)
                case r.Report(state=state):
                    self.run.reported(name, state)


def test_without_losses_each_chunk_is_sent_once_and_few_devices_ask() -> None:
    fleet = Fleet(300, 0.0, seed=1)
    fleet.play(60.0)
    assert {"stored"} == {device.state.state for device in fleet.run.devices.values() if device.state}
    assert COUNT == fleet.chunks
    assert 20 >= fleet.requests


@pytest.mark.parametrize("loss", [0.01, 0.1, 0.4])
def test_losses_are_repaired_for_all_devices_together(loss: float) -> None:
    fleet = Fleet(300, loss, seed=2)
    fleet.play(300.0)
    assert {"stored"} == {device.state.state for device in fleet.run.devices.values() if device.state}
    assert 25 * COUNT > fleet.chunks, "of 300 devices, not 300 times"
