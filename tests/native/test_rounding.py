"""Rounding to 4 bits: the fit beats plain rounding, byte scales beat ggml's, groups of any size share a row."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edged.models.formats.tiles import Codes, Kind, packed_bytes
from edged.models.packing.rounding import quantize
from tests.native.helpers import dequantized


def test_rounding_with_a_minimum_beats_plain_rounding() -> None:
    """The fitted clip loses less than the range from minimum to maximum in 15 equal steps."""
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    groups = values.reshape(64, 8, 32)
    low, step = groups.min(2, keepdims=True), np.ptp(groups, axis=2, keepdims=True) / 15
    plain = np.square(np.rint((groups - low) / step) * step + low - groups).mean()
    fitted = dequantized(quantize(values, Kind.Q4_MIN, 32), Kind.Q4_MIN, 32)
    assert np.square(fitted - values).mean() < 0.93 * plain


@pytest.mark.parametrize("spread", ["normal", "heavy tails"])
def test_scales_of_one_byte_lose_nothing(spread: str) -> None:
    """With a minimum they are nearer than the same fit in float16, in half a bit less; without, than ggml's Q4_0."""
    random = np.random.default_rng(0)
    values = (random.standard_normal((64, 896)) if spread == "normal" else random.standard_t(4, (64, 896))) * 0.02
    values = values.astype(np.float32)

    def error(kind: Kind) -> float:
        return float(np.square(dequantized(quantize(values, kind, 32), kind, 32) - values).mean())

    assert error(Kind.Q4_BYTE_MIN) < error(Kind.Q4_MIN)
    assert error(Kind.Q4_BYTE) < 0.95 * float(np.square(_ggml_q4_0(values) - values).mean())
    assert [4.52, 4.27] == [
        round(packed_bytes(kind, 64, 896, 32) * 8 / 64 / 896, 2) for kind in (Kind.Q4_BYTE_MIN, Kind.Q4_BYTE)
    ]


def _ggml_q4_0(values: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType.Q4_0
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))


def test_groups_of_very_different_size_share_a_row() -> None:
    """One group far larger than the others, all of one sign, or zero: with a minimum each weight stays within a step of
    its own group's range, plus one of the row's steps; with a scale alone within a share of the magnitudes."""
    random = np.random.default_rng(1)
    values = random.standard_normal((16, 256)).astype(np.float32)
    values[:, 64:96] *= 60
    values[1] += 300
    values[2] = 0
    values[3, :32] = 0

    def off(codes: Codes, kind: Kind) -> np.ndarray:
        return np.asarray(np.abs(dequantized(codes, kind, 32) - values).reshape(16, 8, 32).max(2))

    groups = values.reshape(16, 8, 32)
    largest = np.abs(groups).max(2)
    scale_only, both = (quantize(values, kind, 32) for kind in (Kind.Q4_BYTE, Kind.Q4_BYTE_MIN))
    assert (off(scale_only, Kind.Q4_BYTE) <= 0.2 * largest + 0.02 * largest.max(1, keepdims=True)).all()
    assert both.factor is not None
    step = both.factor.astype(np.float32)[:, None] / 16
    assert (off(both, Kind.Q4_BYTE_MIN) <= np.ptp(groups, axis=2) * 3 / 15 + step).all()
