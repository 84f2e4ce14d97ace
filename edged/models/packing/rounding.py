"""Floats rounded to groupwise codes, 4 or 8 bits, as near as the kind allows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from edged.models.formats.tiles import MINIMUM_STEP, SHARES, Array, Codes, Kind

CANDIDATES: Final = (1.0, 0.92, 0.84, 0.76)  # of a group's range, tried as clips
AT_ONCE: Final = 250_000  # weights rounded together: what stays in a processor's caches


def quantize(values: Array, kind: Kind, group: int) -> Codes:
    """Float32 rows [n, cols] rounded to the nearest codes, groupwise.

    4-bit groups are clipped: for each candidate clip, scale and minimum are fitted to the rounded codes by least
    squares, and the fit with the smallest squared error is kept. In 8 bits the whole range is kept. Weights too large
    for float16 scales make a scale or a factor infinite.
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


@np.errstate(over="ignore", invalid="ignore")  # what is too large becomes an infinite scale or factor
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
        for kept, candidate in zip((best_error, *best), (error, scale, minimum), strict=True):
            kept[better] = candidate[better]
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

    Adjacent scales are tried, too, each with the minimum that then fits best: where a row's groups are of similar
    size that gains more than the bytes lose against float16 (docs/decisions/0003).
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
        for kept, candidate in zip((error, shares, steps, codes), (its_error, near, its_steps, its_codes), strict=True):
            kept[better] = candidate[better]
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
    """For each row the smallest float16 in which all its scales and minima are at most 127 shares or steps."""
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
