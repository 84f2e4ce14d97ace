"""Notifies systemd: ready, stopping, a status line, and the watchdog keep-alive, which every loop's progress earns.

Protocol: sd_notify(3), datagrams to the socket in `NOTIFY_SOCKET`. Without systemd nothing is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

_SEND_WITHIN = 1.0  # seconds that systemd may take to read a message; the main loop must not hang on it
STALLED_AFTER = 90.0  # seconds without progress of one loop after which the watchdog keep-alive stops


class Notifier:
    """Owned by the agent's main thread. `environment` is the process's; `clock` returns monotonic seconds."""

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        self._every = int(microseconds) / 1e6 / 4 if microseconds.isdigit() else None
        self._clock = clock
        self._kept_alive_at = clock()
        self._status = ""

    def ready(self) -> None:
        """The journal is open and the loops run."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The daemon was asked to stop."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, if it has changed."""
        line = " ".join(text.split())  # a second line would be another assignment
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def keep_alive(self, ages: Mapping[str, float]) -> str | None:
        """Send the keep-alive when it is due, unless a loop stalls. `ages`: seconds since each loop's last progress.

        Returns the name of a loop that stalls. A lost broker is no stall: waiting to connect is progress.
        """
        stalled = next((name for name, age in ages.items() if age > STALLED_AFTER), None)
        if stalled is None and self._every is not None and self._clock() - self._kept_alive_at >= self._every:
            self._kept_alive_at = self._clock()
            self._send("WATCHDOG=1")
        return stalled

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_SEND_WITHIN)
            try:
                channel.connect(address)
                channel.send(message.encode(errors="replace"))
            except OSError:
                return  # systemd is being restarted; the next message arrives
