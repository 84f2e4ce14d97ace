"""Drafts in the native backend: the bits of one token at a time, and nothing lost where they cannot be computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edged.engine.backends.base import ComputeError, Slice
from edged.engine.backends.native_backend import MAX_DRAFTS, NativeBackend
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.kernels.library import KernelError
from tests.native.helpers import ALL_KERNELS, open_model, pack_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_tiny(tmp_path_factory.mktemp("drafts"), "llama", bits=4)[1]


def one(backend: NativeBackend, item: Slice) -> npt.NDArray[np.float32]:
    (result,) = backend.run([item])
    assert not isinstance(result, ComputeError), result
    return result


def plain(model: NativeModel, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits after each token, computed one by one."""
    backend = NativeBackend(model, slots=1)
    slot = backend.open()
    return np.concatenate([one(backend, Slice(slot, at, [token])) for at, token in enumerate(tokens)])


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_drafts_have_the_bits_of_one_token_at_a_time(folder: Path, kernels: str) -> None:
    """Over the edges of blocks, with some kept and some not, and in the cache for the next that begins alike."""
    random = np.random.default_rng(3)
    with open_model(folder, kernels=kernels) as model, open_model(folder, kernels=kernels) as other:
        text = random.integers(0, 203, 100).tolist()
        expected = plain(other, text)
        backend = NativeBackend(model, slots=2)
        slot = backend.open()
        at = 0
        while at < len(text):
            right = int(random.integers(0, MAX_DRAFTS + 1))
            drafts = text[at + 1 : at + 1 + right]
            wrong = [(token + 1) % 203 for token in text[at + 1 + right : at + 1 + MAX_DRAFTS]]
            rows = one(backend, Slice(slot, at, [text[at]], [*drafts, *wrong]))
            assert (min(1 + len(drafts) + len(wrong), 32 - at % 32), 203) == rows.shape
            drafts = drafts[: len(rows) - 1]
            assert np.array_equal(rows[: 1 + len(drafts)], expected[at : at + 1 + len(drafts)])
            for token in drafts:
                backend.keep(slot, token)
            at += 1 + len(drafts)
        backend.close(slot)
        slot = backend.open()
        assert 99 == backend.reuse(slot, text)
        assert np.array_equal(one(backend, Slice(slot, 99, text[99:]))[0], expected[-1])


def test_only_the_next_draft_can_be_kept(folder: Path) -> None:
    """Not another token, not one that an older run computed."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=1)
        slot = backend.open()
        one(backend, Slice(slot, 0, [1], [2, 3]))
        for wrong in (3, 9):
            with pytest.raises(ComputeError, match="not the next draft"):
                backend.keep(slot, wrong)
        backend.keep(slot, 2)
        one(backend, Slice(slot, 2, [7]))
        with pytest.raises(ComputeError, match="not the next draft"):
            backend.keep(slot, 3)


def test_drafts_take_what_is_left_of_a_block(folder: Path) -> None:
    """And of the context, so that they never cost another sequence's blocks."""
    with open_model(folder, blocks=2, context=40) as model:
        backend = NativeBackend(model, slots=1)
        slot = backend.open()
        one(backend, Slice(slot, 0, list(range(28))))
        for at, rows in ((28, 4), (29, 3), (30, 2), (31, 1), (32, 6), (33, 6)):
            assert (rows, 203) == one(backend, Slice(slot, at, [1], [2, 3, 4, 5, 6])).shape
            assert backend.cache.pools[0].free == (1 if at < 32 else 0)
        one(backend, Slice(slot, 34, [1] * 4))
        assert (2, 203) == one(backend, Slice(slot, 38, [1], [2, 3])).shape
        assert (1, 203) == one(backend, Slice(slot, 39, [1], [2, 3])).shape


def test_drafts_that_lie_in_several_steps(folder: Path) -> None:
    """All of them, or none where a later step fails."""
    with open_model(folder, max_rows=4) as model, open_model(folder) as other:
        backend = NativeBackend(model, slots=1)
        slot = backend.open()
        one(backend, Slice(slot, 0, [1, 2, 3]))
        expected = plain(other, [1, 2, 3, 4, 5, 6, 7, 8, 9])[3:]
        assert np.array_equal(one(backend, Slice(slot, 3, [4], [5, 6, 7, 8, 9])), expected)
        step, calls = model.step, []

        def second_fails(parts: Sequence[Part]) -> npt.NDArray[np.float32]:
            calls.append(parts)
            if len(calls) == 2:
                raise KernelError("out of luck")
            return step(parts)

        model.step = second_fails  # type: ignore[method-assign]
        assert np.array_equal(one(backend, Slice(slot, 4, [5], [6, 7, 8, 9])), expected[1:2])


def test_a_step_that_fails_is_tried_without_drafts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a draft would do to a step is not the sequence's fault, nor that of its company."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=2)
        slots = backend.open(), backend.open()
        for slot in slots:
            one(backend, Slice(slot, 0, [1, 2, 3]))
        step = model.step

        def refuse(parts: Sequence[Part]) -> npt.NDArray[np.float32]:
            if any(99 in part.tokens for part in parts):
                raise KernelError("the logits are not finite")
            return step(parts)

        monkeypatch.setattr(model, "step", refuse)
        good, bad = backend.run([Slice(slots[0], 3, [4], [99]), Slice(slots[1], 3, [99], [5])])
        assert not isinstance(good, ComputeError)
        assert (1, 203) == good.shape
        assert isinstance(bad, ComputeError)
        with pytest.raises(ComputeError, match="not the next draft"):
            backend.keep(slots[0], 99)
        monkeypatch.undo()
        assert np.array_equal(good[0], plain(model, [1, 2, 3, 4])[-1])
