"""What systemd is told: ready, stopping, a status line, and a sign of life that every loop must have earned.

Protocol: sd_notify(3), datagrams to the socket in `NOTIFY_SOCKET`. Without systemd nothing is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

_PATIENCE = 1.0  # seconds that systemd may take to read what we send; the loop must not hang on it
STALLED_AFTER = 90.0  # seconds without progress of one loop after which the watchdog is no longer petted


class Notifier:
    """Owned by the agent's main thread. `environment` is the process's; `clock` gives monotonic seconds."""

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        self._every = int(microseconds) / 1e6 / 4 if microseconds.isdigit() else None
        self._clock = clock
        self._kept_alive_at = clock()
        self._status = ""

    def ready(self) -> None:
        """Journal and loops stand."""
        self._send("READY=1")

    def stopping(self) -> None:
        """We were told to end."""
        self._send("STOPPING=1")

    def status(self, words: str) -> None:
        """One line for `systemctl status`, if it is another."""
        words = " ".join(words.split())  # a line of its own would be another assignment
        if words != self._status:
            self._status = words
            self._send(f"STATUS={words}")

    def keep_alive(self, ages: Mapping[str, float]) -> str | None:
        """Tell systemd that we live, unless a loop stalls. `ages`: seconds since each loop's last progress.

        Gives the name of a loop that stalls. Being without the broker is no stall: waiting to connect is progress.
        """
        stalled = next((name for name, age in ages.items() if age > STALLED_AFTER), None)
        if stalled is None and self._every is not None and self._clock() - self._kept_alive_at >= self._every:
            self._kept_alive_at = self._clock()
            self._send("WATCHDOG=1")
        return stalled

    def _send(self, words: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_PATIENCE)
            try:
                channel.connect(address)
                channel.send(words.encode(errors="replace"))
            except OSError:
                return  # systemd is being restarted; the next word tells it
