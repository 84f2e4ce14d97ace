"""GGUF's quantized types: packed without rounding, multiplied as their values say."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from edged.engine.kernels.library import Tensor, load_library
from edged.models.formats.tiles import packed_bytes
from edged.models.packing.gguf_source import QUANTIZED
from tests.native.gguf_types import block_of, random_blocks, scale_bytes, tiled, values_of
from tests.native.helpers import ALL_KERNELS, rounded


class Blocks:
    """Rows of a type's blocks as packed tiles in memory, and their values."""

    def __init__(self, blocks: np.ndarray, kind: str) -> None:
        self.values = values_of(blocks, kind)
        self.rows, cols = self.values.shape
        packed, group, data = tiled(blocks, kind)
        self._memory = np.zeros(len(data) + 64, np.uint8)
        start = -self._memory.ctypes.data % 64
        self._memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
        self.tensor = Tensor(packed, self.rows, cols, group, self._memory.ctypes.data + start, len(data))

    def dequantized(self) -> np.ndarray:
        """As the embedding reads them, row by row."""
        out = np.empty(self.values.shape, np.float32)
        for row in range(self.rows):
            load_library().dequantize(self.tensor, row, out[row].ctypes.data)
        return out

    def times(self, x: np.ndarray, kernels: str, threads: int = 1) -> np.ndarray:
        """x [m, cols] · wᵀ, float32 [m, rows]."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.full((x.shape[0], -(-self.rows // 8) * 8), np.nan, np.float32)
        load_library().matmul(self.tensor, x.ctypes.data, len(x), y.ctypes.data, threads=threads, kernels=kernels)
        return y[:, : self.rows]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", QUANTIZED)
def test_values_are_those_of_the_gguf_package_bit_for_bit(kind: str) -> None:
    """Random codes and scales, among them 0, subnormal and negative ones; also the sign of zeros."""
    for seed, (rows, blocks) in enumerate(((1, 1), (21, 3), (64, 5))):
        made = Blocks(random_blocks(kind, rows, blocks * block_of(kind), seed), kind)
        assert np.array_equal(made.values.view(np.uint32), made.dequantized().view(np.uint32))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_weights_take_about_as_much_as_in_the_file(kind: str) -> None:
    """At most 6 % more."""
    weights, length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    ours = packed_bytes(QUANTIZED[kind], 8, weights, QUANTIZED[kind].groups[0]) / 8
    assert length <= ours <= 1.06 * length


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("kind", QUANTIZED)
def test_products_agree_with_a_plain_reference(kernels: str, kind: str) -> None:
    """Every number of rows, to within float32's rounding; the same bits alone, in company and on several threads."""
    for seed, (rows, blocks) in enumerate(((3, 1), (8, 2), (33, 3), (203, 5))):
        cols = blocks * block_of(kind)
        w = Blocks(random_blocks(kind, rows, cols, seed, 1.0), kind)
        x = np.random.default_rng(seed).standard_normal((131, cols)).astype(np.float32)
        y = w.times(x, kernels)
        expected = rounded(x) @ w.values.astype(np.float64).T
        scale = np.abs(rounded(x)) @ np.abs(w.values.astype(np.float64)).T + 1e-9
        assert np.max(np.abs(y - expected) / scale) < 2e-5
        for m in (1, 2, 3, 4, 5, 9, 16, 17):
            assert np.array_equal(y[:m], w.times(x[:m], kernels, threads=1 + m % 3))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_extreme_codes_do_not_overflow(kind: str) -> None:
    """Codes of equal bits, all 0 and all 1, times the largest activations of either sign."""
    blocks = random_blocks(kind, 8, 2 * block_of(kind), 0, 1.0)
    kept = blocks.copy()
    for byte in (0x00, 0xFF, 0x80, 0x7F):
        blocks[:] = byte
        _copy_scales(kept, blocks, kind)
        w = Blocks(blocks, kind)
        for size in (3.0, -3.0):
            x = np.full((17, w.values.shape[1]), size, np.float32)
            expected = x.astype(np.float64) @ w.values.astype(np.float64).T
            for kernels in ALL_KERNELS:
                assert w.times(x, kernels) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def _copy_scales(source: np.ndarray, target: np.ndarray, kind: str) -> None:
    """The float16 scales (or exponents) of all blocks."""
    length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    for at in scale_bytes(kind):
        target.reshape(-1, length)[:, at] = source.reshape(-1, length)[:, at]
