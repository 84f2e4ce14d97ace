"""What the supervisor reports: the model's state, why there is no model, and what happened. Plain frozen data."""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.core.prompt import ModelInfo
from edged.worker import frames

ModelState = Literal["starting", "online", "safe"]
"""`starting`: being fetched or loaded for the first time. `online`: a model was loaded; stays so while a worker is
replaced. `safe`: there is no usable model; loading is retried, ever more rarely."""


class ModelFailure(msgspec.Struct, frozen=True):
    """Why there is no model: an error code and a sentence that says what to do."""

    code: str
    message: str


class LoadProgress(msgspec.Struct, frozen=True):
    """The model is being fetched or loaded; `doing` is the present step."""

    doing: str


class ModelReady(msgspec.Struct, frozen=True):
    """A worker has loaded the model, for the first time or again, and accepts prompts."""

    info: ModelInfo


class Fallback(msgspec.Struct, frozen=True):
    """The model `wanted` could not be loaded, for this reason, so an earlier one is used."""

    wanted: frames.Load
    failure: ModelFailure


class FellBack(msgspec.Struct, frozen=True):
    """A model cannot be loaded, for this reason; the last good one of `source` is loaded instead."""

    failure: ModelFailure
    source: str


class EnteredSafe(msgspec.Struct, frozen=True):
    """The model cannot be used for this reason."""

    failure: ModelFailure


class WorkerLost(msgspec.Struct, frozen=True):
    """The worker process ended, in the way that `how` names; the prompts that it had must be submitted again."""

    how: str


class PromptProgress(msgspec.Struct, frozen=True):
    """The worker sent a frame about a prompt."""

    frame: frames.AboutPrompt


Outcome = LoadProgress | ModelReady | FellBack | EnteredSafe | WorkerLost | PromptProgress
