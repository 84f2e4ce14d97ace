"""Weights as the kernels read them: groupwise codes, 8 rows interleaved in a tile. The layout is documented in
`kernels/ops/matrix.h`.

Kinds: float32, float16, bfloat16 as they are; `q4`, `q8`: code · scale (4-bit codes 0…15 mean −8…7); `q4_min`,
`q8_min`: code · scale + minimum. Scales and minima are float16, as GGUF files have them. `q4_byte` and `q4_byte_min`
are what floats become: scales and minima of one byte each, in shares of a factor common to a row's groups, so a
weight takes about 4.25 or 4.5 bits in place of 4.5 or 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROWS: Final = 8  # in a tile
GROUPS: Final = (32, 64, 128)
SHARES: Final = 128  # of a row's factor, in which byte scales are given
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
        """Whether each group has a minimum as well as a scale."""
        return self in {Kind.Q4_MIN, Kind.Q8_MIN, Kind.Q4_BYTE_MIN}

    @property
    def has_factor(self) -> bool:
        """Whether scales and minima are bytes, which a factor of the row makes values."""
        return self in {Kind.Q4_BYTE, Kind.Q4_BYTE_MIN}

    @property
    def zero(self) -> int:
        """The code of the value 0 where there is no minimum."""
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
