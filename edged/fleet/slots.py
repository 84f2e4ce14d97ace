"""The two slots: the model that served last, and the one before it, on disk. Owned by the agent's main thread.

A model is recorded once it serves with the settings in force: after a load, or after a trial was adopted. Where the
model in force cannot be loaded, these are tried instead; no clean-up of the store removes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edged import state_files
from edged.config.schema import Model
from edged.fleet import checked_file

SLOTS_FILE: Final = "slots.json"
_MAX_BYTES: Final = 1_000_000


class Slots(msgspec.Struct, frozen=True):
    """Each is how a model is loaded, with the digest that it had; None where there is none."""

    in_force: Model | None = None
    last_good: Model | None = None

    def with_served(self, model: Model) -> Slots:
        """The slots after `model`, with its digest, has served. The two slots hold models of different bytes."""
        if self.in_force is None or self.in_force.digest == model.digest:
            return Slots(model, self.last_good)
        return Slots(model, self.in_force)

    def instead_of(self, model: Model) -> tuple[Model, ...]:
        """The models to try where this one cannot be loaded, in order."""
        return tuple(slot for slot in (self.in_force, self.last_good) if slot is not None and not _same(slot, model))


class SlotStore:
    """The slots and their file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.slots = Slots()

    def load(self) -> None:
        """Read the file; one that cannot be used is set aside, and the slots are empty."""
        try:
            body = checked_file.read(self._path, _MAX_BYTES)
            self.slots = Slots() if body is None else msgspec.convert(body, Slots)
        except checked_file.DamagedError:
            return
        except msgspec.ValidationError:
            state_files.set_aside(self._path)

    def record(self, slots: Slots) -> None:
        """Replace the slots, first in the file. Raises OSError; then nothing has changed."""
        checked_file.write(self._path, msgspec.to_builtins(slots))
        self.slots = slots


def _same(slot: Model, model: Model) -> bool:
    """Whether loading `model` is loading what is in the slot. A model without a digest may be any of its source."""
    digest = slot.digest if model.digest is None else model.digest
    return msgspec.structs.replace(slot, keep_alive=None) == msgspec.structs.replace(
        model, keep_alive=None, digest=digest
    )
