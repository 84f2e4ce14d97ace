"""Weights as the kernels read them: groupwise codes, 8 rows interleaved in a tile. The layout is documented in
`kernels/ops/matrix.h`.

Kinds: float32, float16, bfloat16 as they are; `q4`, `q5`, `q8`: scale · (code − centre); `q4_min`, `q5_min`, `q8_min`:
scale · code + minimum. Scales and minima are float16, as GGUF files have them. `q4_byte` and `q4_byte_min` are what
floats become: scales and minima of one byte each, in shares of a factor common to a row's groups, so a weight takes
about 4.25 or 4.5 bits in place of 4.5 or 5. `iq4_nl`, `iq4_xs` and `mxfp4` select a value of a table. `q2_k` to `q6_k`
and `iq4_xs` are blocks of 256 with factors for their scales and minima of one byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROWS: Final = 8  # in a tile
GROUPS: Final = (32, 64, 128)
BLOCK: Final = 256  # weights of a row in a block that has factors
SHARES: Final = 128  # of a row's factor, in which byte scales are given
MINIMUM_STEP: Final = 8  # such shares in one step of a byte minimum
IQ4_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
Array = npt.NDArray[Any]


class Scales(Enum):
    """How a group's scale and minimum are stored; as in `matrix.h`."""

    HALF = "float16"
    BRAIN = "bfloat16"
    ROW_BYTES = "int8, with a float16 factor of the row"
    BLOCK_BYTES = "int8, with float16 factors of the block"
    BLOCK_NIBBLES = "4 bits, with float16 factors of the block"


@dataclass(frozen=True)
class Layout:
    """How a kind's codes are stored; as `Traits` in `matrix.h`.

    `low`, `high`: bits in the plane of a code's lowest bits and in the one above. `centre`: subtracted from a code.
    `scale_group`: weights that share a scale in blocks of 256, 0 where there are no such blocks. `levels`: what codes
    select, where they select.
    """

    low: int
    high: int = 0
    centre: int = 0
    minimum: bool = False
    scales: Scales = Scales.HALF
    scale_group: int = 0
    levels: tuple[int, ...] = ()


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
    Q5 = 9
    Q5_MIN = 10
    IQ4_NL = 11
    MXFP4 = 12
    Q2_K = 13
    Q3_K = 14
    Q4_K = 15
    Q5_K = 16
    Q6_K = 17
    IQ4_XS = 18

    @property
    def layout(self) -> Layout:
        """The layout of codes; KeyError for floats."""
        return _LAYOUTS[self]

    @property
    def bits(self) -> int:
        """Of one code or float."""
        if self.is_float:
            return 32 if self is Kind.F32 else 16
        return self.layout.low + self.layout.high

    @property
    def is_float(self) -> bool:
        """Whether weights are stored without groups."""
        return self <= Kind.BF16

    @property
    def has_minimum(self) -> bool:
        """Whether each group has a minimum as well as a scale."""
        return not self.is_float and self.layout.minimum

    @property
    def has_factor(self) -> bool:
        """Whether scales and minima are bytes, which a factor of the row makes values."""
        return not self.is_float and self.layout.scales is Scales.ROW_BYTES

    @property
    def has_blocks(self) -> bool:
        """Whether scales are bytes, which factors of a block of 256 make values."""
        return not self.is_float and self.layout.scale_group > 0

    @property
    def groups(self) -> tuple[int, ...]:
        """The numbers of weights that a group may have."""
        if self.is_float:
            return (0,)
        if self.has_blocks:
            return (BLOCK,)
        return GROUPS if self < Kind.Q5 else GROUPS[:1]

    @property
    def zero(self) -> int:
        """The code of the value 0 where there is no minimum."""
        return self.layout.centre


_LAYOUTS: Final = {
    Kind.Q4: Layout(4, centre=8),
    Kind.Q4_MIN: Layout(4, minimum=True),
    Kind.Q8: Layout(8),
    Kind.Q8_MIN: Layout(8, minimum=True),
    Kind.Q4_BYTE: Layout(4, centre=8, scales=Scales.ROW_BYTES),
    Kind.Q4_BYTE_MIN: Layout(4, minimum=True, scales=Scales.ROW_BYTES),
    Kind.Q5: Layout(4, 1, centre=16),
    Kind.Q5_MIN: Layout(4, 1, minimum=True),
    Kind.IQ4_NL: Layout(4, levels=IQ4_LEVELS),
    Kind.MXFP4: Layout(4, scales=Scales.BRAIN, levels=MXFP4_LEVELS),
    Kind.Q2_K: Layout(2, minimum=True, scales=Scales.BLOCK_NIBBLES, scale_group=16),
    Kind.Q3_K: Layout(2, 1, centre=4, scales=Scales.BLOCK_BYTES, scale_group=16),
    Kind.Q4_K: Layout(4, minimum=True, scales=Scales.BLOCK_BYTES, scale_group=32),
    Kind.Q5_K: Layout(4, 1, minimum=True, scales=Scales.BLOCK_BYTES, scale_group=32),
    Kind.Q6_K: Layout(4, 2, centre=32, scales=Scales.BLOCK_BYTES, scale_group=16),
    Kind.IQ4_XS: Layout(4, scales=Scales.BLOCK_BYTES, scale_group=32, levels=IQ4_LEVELS),
}


@dataclass(frozen=True)
class Codes:
    """Some rows of a matrix: `codes` uint8 or int8 [rows, cols], `scale` and `minimum` [rows, groups].

    Both are float16, or bfloat16 as uint16. With a `factor` they are int8. A factor of the row, float16 [rows]: the
    scale in 1/128 of it, the minimum in 1/16. Factors of blocks, float16 [rows, blocks]: the scale in `factor`, the
    minimum in `minimum_factor`.
    """

    codes: Array
    scale: Array
    minimum: Array | None = None
    factor: Array | None = None
    minimum_factor: Array | None = None

    def arrays(self) -> tuple[Array | None, ...]:
        """All fields in their order."""
        return self.codes, self.scale, self.minimum, self.factor, self.minimum_factor


def block_bytes(kind: Kind, group: int) -> int:
    """The size of one group of one tile."""
    layout = kind.layout
    head = ROWS * (1 if kind.has_factor else 2) * (2 if layout.minimum else 1)
    own = 0
    if kind.has_blocks:
        each = 2 if layout.minimum and layout.scales is Scales.BLOCK_BYTES else 1
        own = ROWS * group // layout.scale_group * each
    return head + own + group * ROWS * kind.bits // 8


def packed_bytes(kind: Kind, rows: int, cols: int, group: int) -> int:
    """The size of a packed matrix in bytes."""
    tiles = -(-rows // ROWS)
    if kind.is_float:
        return tiles * ROWS * cols * kind.bits // 8
    return tiles * (-(-cols // group) * block_bytes(kind, group) + (ROWS * 2 if kind.has_factor else 0))


def tile_floats(values: Array) -> bytes:
    """Rows [n, cols] of any 2- or 4-byte type as tiles; rows beyond n are zero."""
    n, cols = values.shape
    padded = np.zeros((-(-n // ROWS) * ROWS, cols), values.dtype)
    padded[:n] = values
    return bytes(padded.reshape(-1, ROWS, cols).transpose(0, 2, 1).tobytes())


def tile_codes(rows: Codes, kind: Kind, group: int) -> bytes:
    """Coded rows as tiles. Rows beyond the last have scale 0; k beyond the last meets zero activations."""
    n, cols = rows.codes.shape
    tiles, groups, layout = -(-n // ROWS), -(-cols // group), kind.layout
    codes = np.zeros((tiles * ROWS, groups * group), np.uint8)
    codes[:n, :cols] = rows.codes.view(np.uint8)
    planes = [_plane(codes, 0, layout.low)]
    if layout.high:
        planes.append(_plane(codes, layout.low, layout.high))
    minimum = np.zeros_like(rows.scale) if layout.minimum and rows.minimum is None else rows.minimum
    if not kind.has_blocks:
        header = [_head(values, tiles, groups) for values in (rows.scale, minimum) if values is not None]
        parts = planes
    else:
        factors = [values for values in (rows.factor, rows.minimum_factor) if values is not None]
        header = [_head(values, tiles, groups) for values in factors]
        parts = [_sub_header(rows.scale, minimum, kind, tiles), *planes]
    body = np.concatenate(parts, axis=2).reshape(tiles, groups, -1)
    blocks = np.concatenate([*header, body], axis=2)
    if not kind.has_factor or rows.factor is None:
        return bytes(blocks.tobytes())
    row_factors = _head(rows.factor[:, None], tiles, 1).reshape(tiles, -1)
    return bytes(np.concatenate([row_factors, blocks.reshape(tiles, -1)], axis=1).tobytes())


def _plane(codes: Array, shift: int, bits: int) -> Array:
    """`bits` bits of all codes [rows, cols] from bit `shift` on, uint8 [tiles, groups of 32, 32 · bits]."""
    fields = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    split = codes.reshape(-1, ROWS, codes.shape[1] // 32, bits, fields, 4)  # tile, row, 32 k, unit, field, k
    units = np.zeros((*split.shape[:4], 4), np.uint8)
    for field in range(fields):
        units |= (split[:, :, :, :, field] >> np.uint8(shift) & mask) << np.uint8(bits * field)
    return np.asarray(units.transpose(0, 2, 3, 1, 4).reshape(len(split), -1, 32 * bits))


def _sub_header(scale: Array, minimum: Array | None, kind: Kind, tiles: int) -> Array:
    """Byte scales and minima [rows, groups] before the codes of 32 k that they are for, [tiles, groups of 32, …]."""
    if kind.layout.scales is Scales.BLOCK_NIBBLES and minimum is not None:
        scale, minimum = scale.view(np.uint8) | minimum.view(np.uint8) << np.uint8(4), None
    stored = [values for values in (scale, minimum) if values is not None]
    groups = scale.shape[1]
    heads = [
        _head(values, tiles, groups).reshape(tiles, groups * kind.layout.scale_group // 32, -1) for values in stored
    ]
    return np.concatenate(heads, axis=2)


def _head(values: Array, tiles: int, groups: int) -> Array:
    padded = np.zeros((tiles * ROWS, groups), values.dtype)
    padded[: values.shape[0]] = values
    return np.ascontiguousarray(padded.reshape(tiles, ROWS, groups).transpose(0, 2, 1)).view(np.uint8)
