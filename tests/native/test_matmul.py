"""Matrix products of packed weights against plain float64 ones: odd shapes, every kind that floats can become, every
instruction set. Those that only GGUF files have are in test_gguf_types.py."""

from __future__ import annotations

import numpy as np
import pytest

from edged.models.formats.tiles import Kind
from tests.native.helpers import ALL_KERNELS, Packed, rounded

KINDS = [kind for kind in Kind if kind < Kind.Q5]
SHAPES = [(1, 1), (3, 7), (8, 32), (17, 40), (20, 96), (33, 129), (64, 576), (139, 96), (23, 1100)]


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_agree_with_a_plain_reference(kernels: str, kind: Kind) -> None:
    """Every shape, with the activations rounded as the kernels round them, to within float32's own rounding."""
    for index, (rows, cols) in enumerate(SHAPES):
        w = Packed(_random(index, rows, cols), kind)
        for m in (1, 2, 3, 4, 5, 7, 9, 131):
            x = _random(100 + m, m, cols)
            seen = x.astype(np.float64) if kind.is_float else rounded(x)
            expected = seen @ w.values.astype(np.float64).T
            scale = np.abs(seen) @ np.abs(w.values.astype(np.float64)).T + 1e-9
            assert np.max(np.abs(w.times(x, kernels) - expected) / scale) < 2e-5


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("group", [64, 128])
def test_wider_groups(kernels: str, group: int) -> None:
    """Groups of 64 and 128 k, of which the last may be incomplete."""
    for kind in (kind for kind in KINDS if not kind.is_float):
        for rows, cols in ((16, 128), (9, 200), (139, 1184)):
            w, x = Packed(_random(1, rows, cols), kind, group), _random(2, 6, cols)
            expected = rounded(x) @ w.values.astype(np.float64).T
            assert np.max(np.abs(w.times(x, kernels) - expected)) < 1e-3
            for m in (1, 2, 3):
                assert np.array_equal(w.times(x, kernels)[:m], w.times(x[:m], kernels))


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_company_or_the_threads(kernels: str, kind: Kind) -> None:
    """The same bits alone and among 2 … 200 rows, with 1, 2 and 3 threads."""
    w, x = Packed(_random(3, 203, 1200), kind), _random(4, 200, 1200)
    alone = np.concatenate([w.times(x[i : i + 1], kernels) for i in range(200)])
    for m in (2, 3, 4, 5, 6, 11, 128, 129, 200):
        assert np.array_equal(alone[:m], w.times(x[:m], kernels, threads=1 + m % 3))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_codes_do_not_overflow(kind: Kind) -> None:
    """The largest codes times the largest activations, all of one sign."""
    for sign in (1, -1):
        values = np.full((8, 64), sign, np.float32)
        values[:, ::2] *= 0.999
        w, x = Packed(values, kind), np.full((5, 64), 3.0, np.float32)
        for kernels in ALL_KERNELS:
            assert pytest.approx(x.astype(float) @ w.values.T.astype(float), rel=1e-4) == w.times(x, kernels)


def test_a_row_of_the_embedding_is_exact() -> None:
    """dequantize_row gives exactly code · scale (+ minimum), by the row's factor where there is one."""
    for kind in KINDS:
        w = Packed(_random(5, 21, 150), kind)
        for row in (0, 7, 8, 20):
            assert np.array_equal(w.values[row], w.row(row))


def test_zeros_and_constants() -> None:
    """Groups without any range give no division by zero."""
    for kind in KINDS:
        for value in (0.0, 0.5):
            w = Packed(np.full((9, 64), value, np.float32), kind)
            assert pytest.approx(0) == w.times(np.zeros((1, 64), np.float32))
            assert w.times(np.ones((1, 64), np.float32)) == pytest.approx(64 * value, rel=2e-2)
