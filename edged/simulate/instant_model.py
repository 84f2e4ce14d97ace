"""A model that loads and answers at once, in place of the worker processes of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from edged.agent.model_state import Outcome
from edged.core.prompt import Final as Answer
from edged.core.prompt import ModelInfo, Usage
from edged.worker import frames
from edged.worker.client import WorkerEvent

ANSWER: Final = "Tokyo"
"""What it answers to every prompt; a golden prompt that expects anything else does not hold."""


class InstantClient:
    """In place of a `WorkerClient`: posts at once what a worker would send."""

    def __init__(self, generation: int, post: Callable[[WorkerEvent], None]) -> None:
        self.generation = generation
        self._post = post

    def start(self) -> None:
        """Nothing to start."""

    def kill(self) -> None:
        """Nothing to end."""

    def send(self, frame: frames.ToWorker) -> None:
        """Load, or answer."""
        match frame:
            case frames.Load(source=source, context=context):
                self._post(WorkerEvent(self.generation, frames.Loaded(info_of(source, context))))
            case frames.Add(key=key):
                final = Answer("stop", ANSWER, Usage(1, 0, 2), 0, 1.0, 1.0)
                self._post(WorkerEvent(self.generation, frames.Finished(key, final)))


def info_of(source: str, context: int) -> ModelInfo:
    """The model as it is reported."""
    return ModelInfo(source, "sha256:" + "0" * 64, "none", "none", "none", context, 1, 0)


class InstantSupervisor:
    """In place of the `Supervisor`, for a trial: the model in use, and how it is replaced."""

    state = "online"
    unloaded = False
    waking = False

    def __init__(self, order: frames.Load, post: Callable[[WorkerEvent], None]) -> None:
        self.order = order
        self.info = info_of(order.source, order.context)
        self._post = post
        self._clients = 0

    def new_client(self) -> InstantClient:
        """For the new model."""
        self._clients += 1
        return InstantClient(self._clients, self._post)

    def take_over(
        self, _client: InstantClient, order: frames.Load, info: ModelInfo, _load_seconds: float
    ) -> list[Outcome]:
        """The new model serves."""
        self.order, self.info = order, info
        return []

    def use(self, order: frames.Load) -> list[Outcome]:
        """The old model serves again."""
        self.order, self.info = order, info_of(order.source, order.context)
        return []

    def suspend(self) -> None:
        """There is no process to end."""

    def resume(self) -> list[Outcome]:
        """The old model still serves."""
        return []

    def adopted(self) -> None:
        """The new model stays."""


class NoPrompts(msgspec.Struct):
    """In place of the `PromptQueue`: a simulated device has no prompts."""

    open: int = 0
    submitted: int = 0

    def hold(self) -> None:
        """Nothing to hold."""

    def release(self) -> None:
        """Nothing to release."""

    def worker_replaced(self) -> None:
        """Nothing to submit again."""
