"""What a trial asks for (actions), and what happens to it (events). Frozen data."""

from __future__ import annotations

import msgspec

from edged.core.golden import Golden, Matches, Obeys
from edged.core.prompt import Final as Answer

# ---- actions ---------------------------------------------------------------------------------------------------------


class Fetch(msgspec.Struct, frozen=True):
    """Bring the model into the store: `Progress` meanwhile, then `Fetched` or `Failed`."""


class Verify(msgspec.Struct, frozen=True):
    """Hash the stored model: `Verified` or `Failed`."""


class Clear(msgspec.Struct, frozen=True):
    """Submit no more prompts to the old worker, let what runs finish for some seconds, end it: `Cleared`."""


class Load(msgspec.Struct, frozen=True):
    """Start a worker with the new model: `Loaded`, `Failed` or `Exited`."""


class Unload(msgspec.Struct, frozen=True):
    """End the worker with the new model, because it does not fit beside the old one. Not answered."""


class Ask(msgspec.Struct, frozen=True):
    """Submit a golden prompt to the new worker: `Answered` or `Refused`."""

    index: int
    golden: Golden


class Check(msgspec.Struct, frozen=True):
    """Match an answer with what is expected, where a slow match can be ended: `Checked`."""

    index: int
    expect: Matches | Obeys
    answer: str


class Serve(msgspec.Struct, frozen=True):
    """The new worker takes over from the old one, which ends: `Serving`."""


class Commit(msgspec.Struct, frozen=True):
    """Store the settings as applied: `Committed` or `Failed`."""


class Undo(msgspec.Struct, frozen=True):
    """End the new worker, have the old model serve again, report the reason. Not answered."""

    reason: str


Action = Fetch | Verify | Clear | Load | Unload | Ask | Check | Serve | Commit | Undo


# ---- events ----------------------------------------------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True):
    """The fetch goes on; `share` is 0 to 1, None where the size is not known."""

    share: float | None


class Fetched(msgspec.Struct, frozen=True):
    """The model is in the store."""


class Verified(msgspec.Struct, frozen=True):
    """The stored bytes have their digest; `size` in bytes."""

    size: int


class Cleared(msgspec.Struct, frozen=True):
    """The old worker has ended."""


class Loaded(msgspec.Struct, frozen=True):
    """The new worker has loaded the model."""


class Failed(msgspec.Struct, frozen=True):
    """An action failed: an error code and a sentence."""

    code: str
    message: str


class Exited(msgspec.Struct, frozen=True):
    """The worker with the new model ended, in the way that `how` names."""

    how: str


class Answered(msgspec.Struct, frozen=True):
    """The answer to golden prompt `index`."""

    index: int
    answer: Answer


class Refused(msgspec.Struct, frozen=True):
    """The worker cannot compute golden prompt `index`."""

    index: int
    message: str


class Checked(msgspec.Struct, frozen=True):
    """`why` the answer to golden prompt `index` is not what was expected; None: it is."""

    index: int
    why: str | None


class Serving(msgspec.Struct, frozen=True):
    """The new worker gets the prompts."""


class LinkChanged(msgspec.Struct, frozen=True):
    """The broker is connected, or not."""

    up: bool


class Committed(msgspec.Struct, frozen=True):
    """The settings are stored."""


class Withdrawn(msgspec.Struct, frozen=True):
    """The trial is given up for this reason: a newer push, a stop of the daemon."""

    why: str


Event = (
    Progress | Fetched | Verified | Cleared | Loaded | Failed | Exited | Answered | Refused | Checked | Serving
    | LinkChanged | Committed | Withdrawn
)  # fmt: skip
