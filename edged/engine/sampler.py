"""Chooses a sequence's tokens, by the compiled kernels or by `choose_plain`.

The draws come from a PCG64 stream of the sequence's own: the same seed gives the same choices, alone or in a batch.
"""

from __future__ import annotations

import secrets
from array import array
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Sampling
from edged.engine import choose_plain
from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import Library, load_library, sampling_call

SEEDS: Final = 1 << 53


@lru_cache(maxsize=1)
def compiled() -> Library | None:
    """The compiled kernels, built on first use; None where they cannot be built or loaded."""
    try:
        return load_library()
    except (BuildError, OSError):
        return None


class BadLogitsError(ValueError):
    """Logits that are not numbers: nothing can be chosen from them."""


class Sampler:
    """Chooses the tokens of one sequence. `seed` is the one in use, drawn where the sampling names none."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self.seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
        self._sampling = sampling
        self._penalizes = sampling.repetition_penalty != 1.0
        self._seen_set = set(prompt) if self._penalizes else set()
        self.seen = array("i", sorted(self._seen_set))  # the tokens that the penalty is for
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._pending: deque[float] = deque()  # draws of tokens that are not chosen yet
        self._library = compiled()
        self._call = sampling_call(sampling)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token from float32 [vocabulary]. Raises BadLogitsError where there is no finite best one."""
        token = self._choose(np.ascontiguousarray(logits, np.float32), self.uniforms(1)[0])
        if token < 0:
            raise BadLogitsError("the model's logits are not finite")
        self.advance(token)
        return token

    def uniforms(self, count: int) -> array[float]:
        """The uniform draws from [0, 1) of the next `count` tokens, float64 [count]; zeros where sampling is greedy."""
        if self._sampling.temperature == 0:
            return array("d", bytes(8 * count))
        while len(self._pending) < count:
            self._pending.append(self._random.random())
        return array("d", [self._pending[index] for index in range(count)])

    def advance(self, token: int) -> None:
        """Records the next token, which was chosen here or by a backend with its draw: the draw is used up."""
        if self._pending:
            self._pending.popleft()
        if self._penalizes and token not in self._seen_set:
            self._seen_set.add(token)
            self.seen.append(token)

    def _choose(self, logits: npt.NDArray[np.float32], uniform: float) -> int:
        if self._library is None:
            return choose_plain.choose(logits, self._sampling, np.array(self.seen, np.int32), uniform)
        self._call.seen, self._call.seen_count = self.seen.buffer_info()
        self._call.uniform = uniform
        return self._library.choose(logits.ctypes.data, len(logits), self._call)
