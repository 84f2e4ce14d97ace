"""The narrow interface between an engine and what computes.

A backend holds weights and key/value caches. It works on tokens and logits; texts, turns, sampling and order are the
engine's. One thread owns it, and no call blocks longer than computing its slices takes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Sampling

Logits = npt.NDArray[np.float32]
MAX_SLICE: Final = 256  # tokens of one sequence in one run
MIXED_SLICE: Final = 64  # the same in a mixed run, where other sequences wait for their next token


@dataclass(frozen=True)
class Slice:
    """Consecutive tokens of one sequence, the first at position `start`.

    `start` is the number of tokens that the slot holds already. Between 1 and MAX_SLICE tokens. `drafts`: what may come
    after them, computed with them; the slot does not hold them until `keep` is called.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    drafts: Sequence[int] = ()


@dataclass(frozen=True)
class Decoding:
    """A sequence that is decoded for several tokens in one call, each chosen by the backend.

    `token`, the newest, comes to position `start`, the number of tokens that the slot holds. `uniforms`: float64
    [steps], the uniform draw from [0, 1) for each token. `seen`: int32, the tokens that a repetition penalty is for.
    `history`: int32, all its tokens, where the call is to end as soon as drafts could follow; None: it need not.
    """

    slot: int
    start: int
    token: int
    sampling: Sampling
    uniforms: array[float]
    seen: array[int]
    history: array[int] | None = None


class Backend(Protocol):
    """`context` is the most tokens a slot holds, `slots` how many may be open beside one for `Model.logits`.

    `exact`: logits do not depend on how tokens are divided into slices, nor on other slices. `drafts` is the most that
    a slice may carry; 0 without `exact`, and where a computed token cannot be taken back.
    `max_steps` is the most decode steps of one call; with 1 there is only `run`, and `decode` is never called.
    `embeds`: whether there are hidden states.
    """

    @property
    def name(self) -> str: ...
    @property
    def quantization(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def drafts(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def embeds(self) -> bool: ...

    def open(self) -> int:
        """A new empty cache; its number."""

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        """Adds what other sequences left of `tokens` to a cache that holds their beginning or nothing.

        How many of `tokens` it then holds, never all of them; 0 from a backend that keeps nothing.
        """

    def close(self, slot: int) -> None:
        """Frees a cache."""

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        """Computes slices of different slots. For each: float32 [1 + drafts, vocabulary], the logits after its last
        token and after each draft; fewer where not all drafts had space.

        With `every`: after each token, too. A slice that fails gives its error in place of logits, and its slot must be
        closed; the others are not affected.
        """

    def decode(
        self, sequences: Sequence[Decoding], steps: int, stops: array[int], interrupt: array[int]
    ) -> list[list[int]]:
        """Computes up to `steps` decode steps, one token of each sequence a step: the tokens chosen for each, as many
        for one as for the others. The slots hold them but for the last.

        `steps` is at most `max_steps`. It ends with a token of `stops` (int32), where drafts could follow, before a
        step that cannot be computed, and after the one in which another thread sets `interrupt` (one int32) to
        something else than 0. Raises ComputeError, with all slots as before, where not even one step could be computed:
        `run` then gives the error of each sequence.
        """

    def hidden(self, slot: int, start: int, tokens: Sequence[int]) -> Logits | ComputeError:
        """Computes a slice: float32 [tokens, width], the hidden state of each token after the last norm, or the error,
        after which the slot must be closed. Only where `embeds`."""

    def keep(self, slot: int, token: int) -> None:
        """Adds the next of the drafts that were computed in the last run to what a slot holds."""


class ComputeError(Exception):
    """A backend could not compute a slice; the message is the library's."""
