"""Hidden states after the last norm, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.engine.backends.base import ComputeError
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import Part
from edged.engine.kernels.library import KernelError
from tests.native.helpers import open_model, pack_overflowing, pack_tiny


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_hidden_states_agree_with_transformers(tmp_path: Path, family: str) -> None:
    """In one step, in pieces and token by token, on one thread and on several; logits are as before."""
    import torch

    reference, folder = pack_tiny(tmp_path, family)
    tokens = np.random.default_rng(1).integers(0, 203, 100).tolist()
    with torch.no_grad():
        expected = reference.model(torch.tensor([tokens])).last_hidden_state[0].float().numpy()
    for threads in (1, 3):
        with open_model(folder, threads=threads) as model:
            before = model.step([Part(tokens, 0, range(4), wanted=100)])
            whole = model.hidden(Part(tokens, 0, range(10, 14), wanted=100))
            assert np.abs(whole - expected).max() < 1e-3 * np.abs(expected).max()
            for size in (1, 30):
                pieces = [
                    model.hidden(Part(piece, at, range(20, 24), wanted=len(piece)))
                    for at in range(0, 100, size)
                    for piece in [tokens[at : at + size]]
                ]
                assert np.array_equal(whole, np.concatenate(pieces))
            assert np.array_equal(before, model.step([Part(tokens, 0, range(4), wanted=100)]))


def test_what_cannot_be_computed_is_an_error(tmp_path: Path) -> None:
    with open_model(pack_tiny(tmp_path / "a", "llama")[1]) as model:
        backend = NativeBackend(model, 2)
        slot = backend.open()
        for start, tokens in ((1, [1]), (0, []), (0, [203]), (0, [1] * 300)):
            assert isinstance(backend.hidden(slot, start, tokens), ComputeError)
        found = backend.hidden(slot, 0, [1, 2])
        assert not isinstance(found, ComputeError)
        assert (2, model.packed.manifest.shape.width) == found.shape
    with open_model(pack_overflowing(tmp_path / "b", None)) as model, pytest.raises(KernelError, match="finite"):
        model.hidden(Part([1, 2, 3], 0, [0], wanted=3))
