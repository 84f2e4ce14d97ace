"""Every family against transformers: checkpoints and GGUF files, beyond every window and original context."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.engine.backends.native_model import NativeModel, Part
from edged.models.formats.packed import open_packed
from edged.models.packing.pack import pack_path
from tests.native.families import FAMILIES, reference, write_gguf
from tests.native.helpers import open_model, tiny_checkpoint

TOKENS = np.random.default_rng(1).integers(0, 203, 300).tolist()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    """transformers' model, its checkpoint, and the name of its entry."""
    family, changes = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family") / "checkpoint"
    return tiny_checkpoint(folder, family, **changes), folder, request.param


def test_logits_agree_with_transformers(tiny: tuple[Any, Path, str], tmp_path: Path) -> None:
    """A prompt of 300 tokens: within 1e-3, and within 2e-4 where transformers keeps keys and values in float16, too."""
    model, folder, _ = tiny
    pack_path(folder, tmp_path / "packed")
    with open_model(tmp_path / "packed", threads=2, context=512) as opened:
        whole = opened.step([Part(TOKENS, 0, range(10, 20), 300, next_state=0)])
        assert relative(whole, reference(model, TOKENS)) < 1e-3
        assert relative(whole, reference(model, TOKENS, half=True)) < 2e-4
        _check_orders(opened, whole)


def _check_orders(opened: NativeModel, whole: np.ndarray) -> None:
    """In pieces, token by token over the cache, and beside another sequence: the same bits."""
    pieces = [
        opened.step([Part(TOKENS[at : at + 30], at, range(20, 30), 30, *turns(at // 30))]) for at in range(0, 300, 30)
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    single = [opened.step([Part([token], at, range(30, 40), 1, *turns(at))]) for at, token in enumerate(TOKENS)]
    assert np.array_equal(np.concatenate(single), whole)
    for at in range(297):
        state, next_state = turns(at)
        alone = Part(TOKENS[at : at + 1], at, range(30, 40), 1, state, next_state)
        three = Part(TOKENS[at : at + 3], at, range(40, 50), 3, state, 2)
        rows = opened.step([alone, three])
        assert np.array_equal(rows[:1], whole[at : at + 1])
        assert np.array_equal(rows[1:], whole[at : at + 3])


def turns(count: int) -> tuple[int, int]:
    """The recurrent states before and after a sequence's part number `count`: two in turns."""
    return (count % 2 if count else -1), (count + 1) % 2


def test_a_gguf_file_is_the_same_model(tiny: tuple[Any, Path, str], tmp_path: Path) -> None:
    """Names, order of rows, norms and metadata as llama.cpp's converter writes them."""
    model, folder, name = tiny
    pack_path(folder, tmp_path / "packed")
    pack_path(write_gguf(model, tmp_path / "model.gguf"), tmp_path / "of_gguf")
    tokens = TOKENS[:40] if name == "mistral" else TOKENS  # GGUF files of Mistral do not say their window
    parts = [Part(tokens, 0, range(10), len(tokens), next_state=0)]
    with (
        open_model(tmp_path / "packed", context=512) as one,
        open_model(tmp_path / "of_gguf", context=512) as other,
    ):
        assert relative(other.step(parts), one.step(parts)) < 2e-4


def test_gate_and_up_may_have_different_types(tiny: tuple[Any, Path, str], tmp_path: Path) -> None:
    """Two matrices in place of one, with the family's activation, biases and norms: the same bits."""
    model, _, name = tiny
    if FAMILIES[name][0] in {"phi3", "glm4"}:
        pytest.skip("gate and up are one tensor in these files")
    halved = copy.deepcopy(model).half().float()
    pack_path(write_gguf(halved, tmp_path / "same.gguf"), tmp_path / "same")
    types = {"ffn_up": "F16", "ffn_up_exps": "F16"}
    pack_path(write_gguf(halved, tmp_path / "mixed.gguf", types=types), tmp_path / "mixed")
    assert "layers.0.gate" in open_packed(tmp_path / "mixed").manifest.tensors
    parts = [Part(TOKENS[:80], 0, range(10), 80, next_state=0)]
    with open_model(tmp_path / "same", context=512) as one, open_model(tmp_path / "mixed", context=512) as other:
        assert np.array_equal(one.step(parts), other.step(parts))
