"""The devices of a simulation and the one loop that owns them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edged.simulate.device import SimulatedDevice
from edged.simulate.traffic import Traffic

TICK_EVERY: Final = 0.5
_LOOK_EVERY: Final = 0.05


class Fleet:
    """See the module. `start` and `stop` do. Other threads only read what the devices have.

    `mqtt` is the section of the config, `first` the number of the first device,
    `probation` the seconds that a new model serves before it stays.
    """

    def __init__(
        self, fleet: str, count: int, mqtt: dict[str, Any], folder: Path, probation: float, first: int = 0
    ) -> None:
        self.traffic = Traffic()
        self._events: queue.SimpleQueue[tuple[SimulatedDevice, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self.devices = [
            SimulatedDevice(
                {
                    "identity": {"fleet": fleet, "device": f"sim-{number:05d}"},
                    "mqtt": mqtt,
                    "trial": {"probation": probation},
                    "state_dir": str(folder / f"sim-{number:05d}"),
                },
                folder / f"sim-{number:05d}",
                lambda device, event: self._events.put((device, event)),
                self.traffic,
            )
            for number in range(first, first + count)
        ]

    def start(self) -> None:
        """Connect every device at once."""
        self._thread.start()
        for device in self.devices:
            device.start()

    def stop(self) -> None:
        """Disconnect every device."""
        self._events.put(None)
        self._thread.join(10.0)
        for device in self.devices:
            device.stop()

    def wait(self, condition: Callable[[SimulatedDevice], bool], seconds: float) -> float | None:
        """Seconds until the condition holds for every device; None where it does not in time."""
        began = time.monotonic()
        open_ones = list(self.devices)
        while open_ones:
            open_ones = [device for device in open_ones if not condition(device)]
            if not open_ones:
                break
            if time.monotonic() - began > seconds:
                return None
            time.sleep(_LOOK_EVERY)
        return time.monotonic() - began

    def _run(self) -> None:
        tick_at = time.monotonic() + TICK_EVERY
        while True:
            try:
                event = self._events.get(timeout=max(0.0, tick_at - time.monotonic()))
                if event is None:
                    return
                event[0].process(event[1])
            except queue.Empty:
                pass
            if time.monotonic() >= tick_at:
                for device in self.devices:
                    device.tick()
                tick_at = time.monotonic() + TICK_EVERY
