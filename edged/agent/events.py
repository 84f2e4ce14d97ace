"""Everything that the main loop processes: what other threads and signal handlers post to the mailbox."""

from __future__ import annotations

import msgspec

from edged.agent.expectation_check import ExpectationChecked
from edged.agent.model_pull import PullEnded, PullProgress
from edged.agent.model_writer import PartEvent
from edged.core.reading import Reading
from edged.link.events import Acked, Arrived, Down, Up
from edged.worker.client import WorkerEvent


class StopRequested(msgspec.Struct, frozen=True):
    """SIGTERM or SIGINT arrived."""


Event = (
    Up | Down | Arrived | Acked | Reading | WorkerEvent | PullEnded | PullProgress | ExpectationChecked | PartEvent
    | StopRequested
)  # fmt: skip
