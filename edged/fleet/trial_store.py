"""The trial that runs, and the pushes that failed one, on disk. Owned by the agent's main thread.

A record of a running trial that is found at a start means that the agent or the machine restarted during it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from edged import state_files
from edged.fleet import checked_file

_MAX_BYTES = 64_000_000  # at most 35 payloads


class Running(msgspec.Struct, frozen=True):
    """The push that is tried, `step` the last that was begun. An empty payload: the removal of the layer.

    `previous`: the settings of before its roll-out are tried.
    """

    layer: str
    payload: bytes
    step: str = ""
    previous: bool = False


class RefusedPush(msgspec.Struct, frozen=True):
    """A push that was rolled back, and why. `previous`: its settings of before the roll-out were."""

    payload: bytes
    reason: str
    previous: bool = False


class TrialStore:
    """See the module. `scope` names the fleet and device that the records belong to."""

    def __init__(self, path: Path, scope: str) -> None:
        self._path = path
        self._scope = scope
        self.running: Running | None = None
        self.refused: Mapping[str, RefusedPush] = {}
        """By layer."""

    def load(self) -> None:
        """Read the file; one that cannot be used is set aside. The layers on disk are in force either way."""
        try:
            body = checked_file.read(self._path, _MAX_BYTES)
            if body is None or body["scope"] != self._scope:
                return
            if body["running"] is not None:
                running = body["running"]
                self.running = Running(
                    running["layer"],
                    base64.b64decode(running["payload"]),
                    running["step"],
                    running.get("previous", False),
                )
            self.refused = {
                name: RefusedPush(base64.b64decode(entry["payload"]), entry["reason"], entry.get("previous", False))
                for name, entry in body["refused"].items()
            }
        except checked_file.DamagedError:
            return
        except (KeyError, TypeError, ValueError, AttributeError):
            state_files.set_aside(self._path)

    def begin(self, running: Running) -> None:
        """Write down a trial before its first step. Raises OSError; then there is none."""
        refused = {name: push for name, push in self.refused.items() if name != running.layer}
        self._save(running, refused)
        self.running, self.refused = running, refused

    def step(self, step: str) -> None:
        """The trial goes on. A record that cannot be replaced is still one of this trial."""
        if self.running is not None:
            self.running = msgspec.structs.replace(self.running, step=step)
            with suppress(OSError):
                self._save(self.running, self.refused)

    def end(self, refused: RefusedPush | None = None) -> None:
        """The trial ended; `refused` where its push must not be tried again.

        A record that cannot be removed counts as a restart during the trial, or as adopted, at the next start.
        """
        running, self.running = self.running, None
        if running is not None and refused is not None:
            self.refused = {**self.refused, running.layer: refused}
        with suppress(OSError):
            self._save(None, self.refused)

    def forget(self, layer: str) -> None:
        """Another push to this layer was accepted."""
        if layer in self.refused:
            self.refused = {name: push for name, push in self.refused.items() if name != layer}
            with suppress(OSError):
                self._save(self.running, self.refused)

    def _save(self, running: Running | None, refused: Mapping[str, RefusedPush]) -> None:
        body = {
            "scope": self._scope,
            "running": running
            and {
                "layer": running.layer,
                "payload": _text(running.payload),
                "step": running.step,
                "previous": running.previous,
            },
            "refused": {
                name: {"payload": _text(push.payload), "reason": push.reason, "previous": push.previous}
                for name, push in refused.items()
            },
        }
        checked_file.write(self._path, body)


def _text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()
