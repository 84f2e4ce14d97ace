"""Weights as the kernels want them: groupwise codes, 8 rows interleaved in a tile. The layout is written down in
`kernels/table.h`.

Kinds: float32, float16, bfloat16 as they are; `q4`, `q8`: code · scale (4-bit codes 0…15 stand for −8…7); `q4_min`,
`q8_min`: code · scale + minimum. Scales and minima are float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROWS: Final = 8  # in a tile
GROUPS: Final = (32, 64, 128)
CANDIDATES: Final = (1.0, 0.92, 0.84, 0.76)  # of a group's range, tried as clips
Array = npt.NDArray[Any]


class Kind(IntEnum):
    """How a matrix is stored; the numbers are part of the packed format."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q4 = 3
    Q4_MIN = 4
    Q8 = 5
    Q8_MIN = 6

    @property
    def bits(self) -> int:
        """Of one code."""
        return {Kind.F32: 32, Kind.F16: 16, Kind.BF16: 16, Kind.Q4: 4, Kind.Q4_MIN: 4}.get(self, 8)

    @property
    def is_float(self) -> bool:
        """Whether weights are stored without groups."""
        return self <= Kind.BF16

    @property
    def has_minimum(self) -> bool:
        """Whether each group has a minimum beside its scale."""
        return self in {Kind.Q4_MIN, Kind.Q8_MIN}


@dataclass(frozen=True)
class Codes:
    """Some rows of a matrix: `codes` uint8 or int8 [rows, cols], `scale` and `minimum` float16 [rows, groups]."""

    codes: Array
    scale: Array
    minimum: Array | None = None


def packed_bytes(kind: Kind, rows: int, cols: int, group: int) -> int:
    """The size of a packed matrix in bytes."""
    tiles = -(-rows // ROWS)
    if kind.is_float:
        return tiles * ROWS * cols * kind.bits // 8
    block = (32 if kind.has_minimum else 16) + group * ROWS * kind.bits // 8
    return tiles * -(-cols // group) * block


def tile_floats(values: Array) -> bytes:
    """Rows [n, cols] of any 2- or 4-byte type as tiles; rows beyond n are zero."""
    n, cols = values.shape
    padded = np.zeros((-(-n // ROWS) * ROWS, cols), values.dtype)
    padded[:n] = values
    return bytes(padded.reshape(-1, ROWS, cols).transpose(0, 2, 1).tobytes())


def tile_codes(rows: Codes, kind: Kind, group: int) -> bytes:
    """Coded rows as tiles. Rows beyond the last have scale 0; k beyond the last meets zero activations."""
    n, cols = rows.codes.shape
    tiles, groups = -(-n // ROWS), -(-cols // group)
    codes = np.zeros((tiles * ROWS, groups * group), np.uint8)
    codes[:n, :cols] = rows.codes.view(np.uint8)
    header = [_head(rows.scale, tiles, groups)]
    if kind.has_minimum:
        header.append(_head(np.zeros_like(rows.scale) if rows.minimum is None else rows.minimum, tiles, groups))
    if kind.bits == 4:  # axes: tile, row, group, 8 k, low or high, 4 k
        parts = codes.reshape(tiles, ROWS, groups, group // 8, 2, 4).transpose(0, 2, 3, 4, 1, 5)
        body = parts[:, :, :, 0] | parts[:, :, :, 1] << 4
    else:
        body = codes.reshape(tiles, ROWS, groups, group // 4, 4).transpose(0, 2, 3, 1, 4)
    blocks = [*header, np.ascontiguousarray(body).reshape(tiles, groups, -1)]
    return bytes(np.concatenate(blocks, axis=2).tobytes())


def _head(values: Array, tiles: int, groups: int) -> Array:
    padded = np.zeros((tiles * ROWS, groups), np.float16)
    padded[: values.shape[0]] = values
    return np.ascontiguousarray(padded.reshape(tiles, ROWS, groups).transpose(0, 2, 1)).view(np.uint8)


def quantize(values: Array, kind: Kind, group: int) -> Codes:
    """Float32 rows [n, cols] rounded to the nearest codes, groupwise.

    With a minimum the group's range is clipped: for each candidate clip, scale and minimum are fitted to the rounded
    codes by least squares, and the fit with the smallest squared error is kept. Without one, the largest magnitude is
    kept.
    """
    n, cols = values.shape
    groups = -(-cols // group)
    padded = np.zeros((n, groups * group), np.float32)
    padded[:, :cols] = values
    if cols % group:  # what is beyond the last column must not widen the range
        padded[:, cols:] = values[:, -1:]
    grouped = padded.reshape(n, groups, group)
    coded = _with_minimum(grouped, kind) if kind.has_minimum else _symmetric(grouped, kind)
    return Codes(coded.codes.reshape(n, -1)[:, :cols], coded.scale, coded.minimum)


def _symmetric(grouped: Array, kind: Kind) -> Codes:
    if kind is Kind.Q8:
        scale = (np.abs(grouped).max(2) / 127).astype(np.float16)
        codes = np.clip(np.rint(_divided(grouped, scale)), -127, 127).astype(np.int8)
        return Codes(codes, scale)
    # The extreme value, with its sign, becomes code 0 (−8): as ggml's Q4_0 does.
    at = np.abs(grouped).argmax(2)
    extreme = np.take_along_axis(grouped, at[..., None], 2)[..., 0]
    scale = (extreme / -8).astype(np.float16)
    codes = np.clip(np.rint(_divided(grouped, scale)) + 8, 0, 15).astype(np.uint8)
    return Codes(codes, scale)


def _with_minimum(grouped: Array, kind: Kind) -> Codes:
    low_code, high_code = (0, 15) if kind is Kind.Q4_MIN else (-128, 127)
    bottom, top = grouped.min(2), grouped.max(2)
    middle, half = (bottom + top) / 2, (top - bottom) / 2
    best_error = np.full(bottom.shape, np.inf, np.float32)
    best_scale, best_minimum = np.zeros_like(bottom), np.zeros_like(bottom)
    clips = CANDIDATES if kind is Kind.Q4_MIN else CANDIDATES[:1]
    for clip in clips:
        scale = 2 * half * clip / (high_code - low_code)
        minimum = middle - half * clip - scale * low_code
        codes = _codes(grouped, scale, minimum, low_code, high_code)
        scale, minimum = _fit(grouped, codes, scale, minimum)
        scale, minimum = scale.astype(np.float16), minimum.astype(np.float16)
        codes = _codes(grouped, scale, minimum, low_code, high_code)
        wide = scale[..., None].astype(np.float32), minimum[..., None].astype(np.float32)
        error = np.square(codes * wide[0] + wide[1] - grouped).sum(2)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better], best_minimum[better] = scale[better], minimum[better]
    codes = _codes(grouped, best_scale, best_minimum, low_code, high_code)
    dtype = np.uint8 if kind is Kind.Q4_MIN else np.int8
    return Codes(codes.astype(dtype), best_scale.astype(np.float16), best_minimum.astype(np.float16))


def _fit(grouped: Array, codes: Array, scale: Array, minimum: Array) -> tuple[Array, Array]:
    """Scale and minimum that make codes · scale + minimum nearest to the weights; the given ones where codes are all
    the same."""
    n = grouped.shape[2]
    mean_code, mean = codes.mean(2), grouped.mean(2)
    variance = np.square(codes).sum(2) - n * np.square(mean_code)
    covariance = (codes * grouped).sum(2) - n * mean_code * mean
    usable = variance > 1e-3
    fitted = np.where(usable, covariance / np.where(usable, variance, 1), scale)
    return fitted, np.where(usable, mean - fitted * mean_code, minimum)


def _codes(grouped: Array, scale: Array, minimum: Array, low: int, high: int) -> Array:
    offset = grouped - minimum[..., None].astype(np.float32)
    return np.clip(np.rint(_divided(offset, scale)), low, high)


def _divided(grouped: Array, scale: Array) -> Array:
    wide = scale.astype(np.float32)
    inverse = np.where(wide != 0, 1 / np.where(wide != 0, wide, 1), 0)
    return np.asarray(grouped * inverse[..., None])
