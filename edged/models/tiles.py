"""Weights as the kernels want them: groupwise codes, 8 rows interleaved in a tile. The layout is written down in
`kernels/table.h`.

Kinds: float32, float16, bfloat16 as they are; `q4`, `q8`: code · scale (4-bit codes 0…15 stand for −8…7); `q4_min`,
`q8_min`: code · scale + minimum. Scales and minima are float16, as GGUF files have them. `q4_byte` and `q4_byte_min`
are what floats become: scales and minima of one byte each, in shares of a factor that a row's groups have in common,
so a weight takes about 4.25 or 4.5 bits in place of 4.5 or 5.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROWS: Final = 8  # in a tile
GROUPS: Final = (32, 64, 128)
CANDIDATES: Final = (1.0, 0.92, 0.84, 0.76)  # of a group's range, tried as clips
SHARES: Final = 128  # of a row's factor, in which byte scales are given
AT_ONCE: Final = 250_000  # weights quantized together: what stays in a processor's caches
MINIMUM_STEP: Final = 8  # such shares in one step of a byte minimum
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
    Q4_BYTE = 7
    Q4_BYTE_MIN = 8

    @property
    def bits(self) -> int:
        """Of one code."""
        return {Kind.F32: 32, Kind.F16: 16, Kind.BF16: 16, Kind.Q8: 8, Kind.Q8_MIN: 8}.get(self, 4)

    @property
    def is_float(self) -> bool:
        """Whether weights are stored without groups."""
        return self <= Kind.BF16

    @property
    def has_minimum(self) -> bool:
        """Whether each group has a minimum beside its scale."""
        return self in {Kind.Q4_MIN, Kind.Q8_MIN, Kind.Q4_BYTE_MIN}

    @property
    def has_factor(self) -> bool:
        """Whether scales and minima are bytes, which a factor of the row makes values."""
        return self in {Kind.Q4_BYTE, Kind.Q4_BYTE_MIN}

    @property
    def zero(self) -> int:
        """The code that stands for 0 where there is no minimum."""
        return 8 if self in {Kind.Q4, Kind.Q4_BYTE} else 0


@dataclass(frozen=True)
class Codes:
    """Some rows of a matrix: `codes` uint8 or int8 [rows, cols], `scale` and `minimum` float16 [rows, groups].

    With a `factor` float16 [rows], scale and minimum are int8: the scale in 1/128 of the factor, the minimum in 1/16.
    """

    codes: Array
    scale: Array
    minimum: Array | None = None
    factor: Array | None = None


def packed_bytes(kind: Kind, rows: int, cols: int, group: int) -> int:
    """The size of a packed matrix in bytes."""
    tiles = -(-rows // ROWS)
    if kind.is_float:
        return tiles * ROWS * cols * kind.bits // 8
    head = ROWS * (1 if kind.has_factor else 2) * (2 if kind.has_minimum else 1)
    block = head + group * ROWS * kind.bits // 8
    return tiles * (-(-cols // group) * block + (ROWS * 2 if kind.has_factor else 0))


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
    blocks = np.concatenate([*header, np.ascontiguousarray(body).reshape(tiles, groups, -1)], axis=2)
    if rows.factor is None:
        return bytes(blocks.tobytes())
    factors = _head(rows.factor[:, None], tiles, 1).reshape(tiles, -1)
    return bytes(np.concatenate([factors, blocks.reshape(tiles, -1)], axis=1).tobytes())


def _head(values: Array, tiles: int, groups: int) -> Array:
    padded = np.zeros((tiles * ROWS, groups), values.dtype)
    padded[: values.shape[0]] = values
    return np.ascontiguousarray(padded.reshape(tiles, ROWS, groups).transpose(0, 2, 1)).view(np.uint8)


def quantize(values: Array, kind: Kind, group: int) -> Codes:
    """Float32 rows [n, cols] rounded to the nearest codes, groupwise.

    4-bit groups are clipped: for each candidate clip, scale and minimum are fitted to the rounded codes by least
    squares, and the fit with the smallest squared error is kept. In 8 bits the whole range is kept.
    """
    rows = max(1, AT_ONCE // values.shape[1])
    slices = [values[begin : begin + rows] for begin in range(0, len(values), rows)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(slices))) as threads:  # numpy works without the lock
        parts = list(threads.map(lambda part: _quantize(part, kind, group), slices))
    minima = [one.minimum for one in parts if one.minimum is not None]
    factors = [one.factor for one in parts if one.factor is not None]
    return Codes(
        np.concatenate([one.codes for one in parts]),
        np.concatenate([one.scale for one in parts]),
        np.concatenate(minima) if minima else None,
        np.concatenate(factors) if factors else None,
    )


def _quantize(values: Array, kind: Kind, group: int) -> Codes:
    n, cols = values.shape
    groups = -(-cols // group)
    padded = np.zeros((n, groups * group), np.float32)
    padded[:, :cols] = values
    if cols % group:  # what is beyond the last column must not widen the range
        padded[:, cols:] = values[:, -1:]
    grouped = padded.reshape(n, groups, group)
    coded = (_in_bytes if kind.has_factor else _in_halves)(grouped, *_fitted(grouped, kind), kind)
    return Codes(coded.codes.reshape(n, -1)[:, :cols], coded.scale, coded.minimum, coded.factor)


def _fitted(grouped: Array, kind: Kind) -> tuple[Array, Array]:
    """Scales and minima (0 where the kind has none) as float32 [n, groups]."""
    whole_scale, whole_minimum, middle = _range(grouped, kind)
    if kind.bits == 8:
        return whole_scale, whole_minimum
    best_error = np.full(grouped.shape[:2], np.inf, np.float32)
    best = whole_scale.copy(), whole_minimum.copy()  # kept where errors overflow: no float16 holds such scales
    for clip in CANDIDATES:
        scale, minimum = whole_scale * np.float32(clip), middle + (whole_minimum - middle) * np.float32(clip)
        codes = _codes(grouped, scale, minimum, kind)
        scale, minimum = _fit(grouped, codes, scale, minimum, kind)
        codes = _codes(grouped, scale, minimum, kind)
        error = _error(grouped, codes, scale, minimum)
        better = error < best_error
        for kept, found in zip((best_error, *best), (error, scale, minimum), strict=True):
            kept[better] = found[better]
    return best


def _range(grouped: Array, kind: Kind) -> tuple[Array, Array, Array]:
    """Scale and minimum that spread the codes over each group's whole range, and the middle of that.

    Without a minimum and in 4 bits the extreme value, with its sign, becomes code 0 (−8), as in ggml's Q4_0.
    """
    bottom, top = grouped.min(2), grouped.max(2)
    if kind.has_minimum:
        low, high = _limits(kind)
        scale = (top - bottom) / (high - low)
        return scale, bottom - scale * low, (bottom + top) / 2
    extreme = np.where(top >= -bottom, top, bottom)
    scale = extreme / -8 if kind.bits == 4 else np.abs(extreme) / 127
    return scale, np.zeros_like(scale), np.zeros_like(scale)


def _limits(kind: Kind) -> tuple[int, int]:
    """The smallest and the largest code, as they are multiplied."""
    if kind.bits == 4:
        return -kind.zero, 15 - kind.zero
    return (-128 if kind.has_minimum else -127), 127


def _fit(grouped: Array, codes: Array, scale: Array, minimum: Array, kind: Kind) -> tuple[Array, Array]:
    """Scale and minimum that make codes · scale + minimum nearest to the weights; the given ones where codes are all
    the same."""
    n = grouped.shape[2]
    if kind.has_minimum:
        mean_code, mean = codes.mean(2), grouped.mean(2)
    else:
        mean_code = mean = np.zeros_like(scale)
    variance = _products(codes, codes) - n * np.square(mean_code)
    covariance = _products(codes, grouped) - n * mean_code * mean
    usable = variance > 1e-3
    fitted = np.where(usable, covariance / np.where(usable, variance, 1), scale)
    return fitted, np.where(usable, mean - fitted * mean_code, minimum)


def _in_halves(grouped: Array, scale: Array, minimum: Array, kind: Kind) -> Codes:
    """Scales and minima as float16, and the codes that are nearest with those."""
    kept, kept_minimum = scale.astype(np.float16), minimum.astype(np.float16)
    codes = _codes(grouped, kept.astype(np.float32), kept_minimum.astype(np.float32), kind) + kind.zero
    dtype = np.uint8 if kind.bits == 4 else np.int8
    return Codes(codes.astype(dtype), kept, kept_minimum if kind.has_minimum else None)


def _in_bytes(grouped: Array, scale: Array, minimum: Array, kind: Kind) -> Codes:
    """Scales and minima as bytes, and the codes that are nearest with those.

    A scale's neighbours are tried, too, each with the minimum that then fits best: where a row's groups are of similar
    size that gains more than the bytes lose against float16 (docs/native.md, "Layout of weights").
    """
    factor = _factor(scale, minimum)
    share = factor.astype(np.float32)[:, None] / SHARES
    step = share * MINIMUM_STEP
    shares, steps = np.rint(_ratio(scale, share)), np.rint(_ratio(minimum, step))
    codes = _codes(grouped, shares * share, steps * step, kind)
    error = _error(grouped, codes, shares * share, steps * step)
    mean, mean_code, middle = grouped.mean(2), codes.mean(2), shares.copy()
    for change in (-1, 0, 1):
        near = np.clip(middle + change, -127, 127)
        its_steps = steps
        if kind.has_minimum:
            its_steps = np.clip(np.rint(_ratio(mean - near * share * mean_code, step)), -127, 127)
        its_codes = _codes(grouped, near * share, its_steps * step, kind)
        its_error = _error(grouped, its_codes, near * share, its_steps * step)
        better = its_error < error
        for kept, found in zip((error, shares, steps, codes), (its_error, near, its_steps, its_codes), strict=True):
            kept[better] = found[better]
    narrow = (codes + kind.zero).astype(np.uint8), shares.astype(np.int8), steps.astype(np.int8)
    return Codes(narrow[0], narrow[1], narrow[2] if kind.has_minimum else None, factor)


def _error(grouped: Array, codes: Array, scale: Array, minimum: Array) -> Array:
    """The sum of squared errors of each group."""
    off = codes * scale[..., None]
    off += minimum[..., None]
    off -= grouped
    return _products(off, off)


def _products(a: Array, b: Array) -> Array:
    """The sum of products of each group."""
    return np.asarray(np.einsum("ngk,ngk->ng", a, b))


def _factor(scale: Array, minimum: Array) -> Array:
    """The smallest float16 a row in which all its scales and minima are at most 127 shares or steps."""
    most = np.maximum(np.abs(scale).max(1), np.abs(minimum).max(1) / MINIMUM_STEP) * np.float32(SHARES / 127)
    factor = most.astype(np.float16)
    return np.asarray(np.where(factor.astype(np.float32) < most, np.nextafter(factor, np.float16(np.inf)), factor))


def _codes(grouped: Array, scale: Array, minimum: Array, kind: Kind) -> Array:
    codes = _ratio(grouped - minimum[..., None], scale[..., None])
    return np.asarray(np.clip(np.rint(codes, out=codes), *_limits(kind), out=codes))


def _ratio(values: Array, unit: Array) -> Array:
    """values / unit; 0 where the unit is 0."""
    wide = unit.astype(np.float32)
    return np.asarray(values * np.where(wide != 0, 1 / np.where(wide != 0, wide, 1), 0))
