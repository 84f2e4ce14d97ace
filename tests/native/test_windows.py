"""Layers with a sliding window: their cache is bounded by the window, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.engine.backends.base import Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.backends.native_open import blocks_of_context, cache_bytes, open_native
from edged.models.formats.packed import open_packed
from tests.native.helpers import open_model, pack_tiny

TOKENS = np.random.default_rng(2).integers(0, 203, 1000).tolist()
GEMMA = {"head_dim": 16, "sliding_window": 48, "num_hidden_layers": 7, "query_pre_attn_scalar": 16}


@pytest.fixture(scope="module", params=["mistral", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers with a window of 40 tokens; all but one with one of 48."""
    changes = {"mistral": {"sliding_window": 40}, "gemma3": GEMMA}[request.param]
    tmp = tmp_path_factory.mktemp("window")
    return pack_tiny(tmp, request.param, max_position_embeddings=1024, **changes)[1]


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    """The logits after each token, with blocks for all layers and tokens."""
    with open_model(folder, context=1024, max_rows=1024) as model:
        return model.step([Part(TOKENS, 0, range(32), wanted=1000)])


def _bounded(folder: Path, sequences: int) -> NativeBackend:
    """A backend with just the blocks of so many sequences."""
    packed = open_packed(folder)
    blocks, window_blocks = blocks_of_context(1024, packed.manifest.shape.window)
    assert (32, 11) == (blocks, window_blocks)
    counts = {"blocks": blocks * sequences, "window_blocks": window_blocks * sequences}
    return NativeBackend(NativeModel(packed, context=1024, threads=2, **counts), sequences)


def test_the_numbers_are_the_same_in_few_blocks(folder: Path, expected: np.ndarray) -> None:
    """A prompt in the longest slices, then tokens one by one with drafts, beside another sequence: the same bits."""
    backend = _bounded(folder, 2)
    slot, other = backend.open(), backend.open()
    for at in range(0, 768, 256):
        slices = [Slice(slot, at, TOKENS[at : at + 256]), Slice(other, at, TOKENS[at : at + 256])]
        assert all(np.array_equal(rows[-1], expected[at + 255]) for rows in backend.run(slices))  # type: ignore[index]
    backend.close(other)
    for at in range(768, 1000, 2):
        (rows,) = backend.run([Slice(slot, at, [TOKENS[at]], drafts=TOKENS[at + 1 : at + 2])])
        assert np.array_equal(rows, expected[at : at + 1 + (len(rows) > 1)])  # type: ignore[arg-type]
        if len(rows) > 1:  # type: ignore[arg-type]
            backend.keep(slot, TOKENS[at + 1])
        else:
            backend.run([Slice(slot, at + 1, [TOKENS[at + 1]])])
    backend.model.close()


def test_a_beginning_is_reused_behind_the_window(folder: Path, expected: np.ndarray) -> None:
    """A prompt continues after the end of an earlier one, also within a block; where the window's blocks were evicted,
    it is computed again: the same bits either way."""
    backend = _bounded(folder, 1)

    def compute(tokens: list[int]) -> int:
        slot = backend.open()
        kept = at = backend.reuse(slot, tokens)
        while at < len(tokens):
            (rows,) = backend.run([Slice(slot, at, tokens[at : at + 256])])
            at = min(at + 256, len(tokens))
        if tokens == TOKENS[: len(tokens)]:
            assert np.array_equal(rows[-1], expected[len(tokens) - 1])  # type: ignore[index]
        backend.close(slot)
        return kept

    assert 0 == compute(TOKENS[:700])
    assert 700 == compute(TOKENS[:710])
    assert 0 == compute([*TOKENS[1:100], 7])
    assert 710 == compute(TOKENS[:720])
    assert 0 == compute(TOKENS[300:1000])
    assert 0 == compute(TOKENS[:300])
    assert 299 == compute(TOKENS[:300])
    backend.model.close()


def test_memory_is_admitted_for_the_window(folder: Path) -> None:
    """What one context takes counts a window's blocks alone, and so does the cache."""
    packed = open_packed(folder)
    one = blocks_of_context(1024, packed.manifest.shape.window)
    everything = cache_bytes(packed.manifest.shape, (one[0], one[0]))
    assert cache_bytes(packed.manifest.shape, one) < everything / 2
    backend = open_native(packed, 1024, 1, lambda: 10**9, slots=1)
    assert 2 * cache_bytes(packed.manifest.shape, one) == backend.model.memory()[0]
    backend.model.close()


def test_a_model_without_windows_has_one_pool(tmp_path: Path) -> None:
    """Of the blocks of all tokens."""
    folder = pack_tiny(tmp_path, "llama", max_position_embeddings=1024)[1]
    backend = open_native(open_packed(folder), 1024, 1, lambda: 10**9, slots=3)
    assert [4 * 32] == [pool.count for pool in backend.cache.pools]
    (rows,) = backend.run([Slice(backend.open(), 0, TOKENS[:256])])
    assert (1, 203) == rows.shape  # type: ignore[union-attr]
    backend.model.close()


def _with_windows(folder: Path, windows: list[int]) -> Path:
    """The packed model with these windows of its layers."""
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    document["shape"]["window_of"] = windows
    manifest.write_text(json.dumps(document))
    return folder


def test_windows_beside_recurrent_states(tmp_path: Path) -> None:
    """Each kind of layer has its own memory, and blocks that the window has passed are released: the same bits as at
    once with blocks for all tokens."""
    layers = {"layer_types": ["full_attention", "conv", "full_attention", "conv", "full_attention"]}
    sizes = {"num_hidden_layers": 5, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    folder = _with_windows(pack_tiny(tmp_path, "lfm2", **layers, **sizes)[1], [40, 0, 0, 0, 40])
    with open_model(folder, context=1024, max_rows=1024) as model:
        expected = model.step([Part(TOKENS, 0, range(32), wanted=1000, next_state=0)])
    backend = _bounded(folder, 1)
    assert [0, 40] == [pool.window for pool in backend.cache.pools]
    for _ in range(2):
        slot = backend.open()
        for at in range(0, 1000, 250):
            (rows,) = backend.run([Slice(slot, at, TOKENS[at : at + 250])])
            assert np.array_equal(rows[-1], expected[at + 249])  # type: ignore[index]
        backend.close(slot)
        assert [pool.count for pool in backend.cache.pools] == [pool.free for pool in backend.cache.pools]
    backend.model.close()


def test_a_window_of_a_layer_without_attention_is_refused(tmp_path: Path) -> None:
    """It would be ignored."""
    layers = {"layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True}
    folder = _with_windows(pack_tiny(tmp_path, "lfm2", **layers)[1], [40, 0, 0])
    with pytest.raises(ModelError, match="kinds of the model's layers are wrong"):
        open_packed(folder)
