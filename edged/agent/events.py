"""Everything that the main loop processes: what other threads and signal handlers post to the mailbox."""

from __future__ import annotations

import msgspec

from edged.agent.expectation_check import ExpectationChecked
from edged.agent.model_pull import PullEnded, PullProgress
from edged.agent.model_writer import PartEvent
from edged.core.reading import Reading
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.events import Event as LinkEvent
from edged.worker.client import WorkerEvent


class FromPool(msgspec.Struct, frozen=True):
    """An event of the second connection, for pools; `generation` counts these connections."""

    generation: int
    event: LinkEvent


class StopRequested(msgspec.Struct, frozen=True):
    """SIGTERM or SIGINT arrived."""


Event = (
    Up | Down | Arrived | Acked | Reading | WorkerEvent | PullEnded | PullProgress | ExpectationChecked | PartEvent
    | StopRequested | FromPool
)  # fmt: skip
