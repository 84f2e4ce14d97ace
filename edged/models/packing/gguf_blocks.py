"""ggml's blocks as codes and scales, for each type that the kernels compute; nothing is rounded.

Layouts as in ggml's `ggml-common.h` and the `gguf` package's `quants.py`. A reader gets blocks uint8 [rows, n, bytes]
of one type and gives the codes in the order of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edged.models.formats.tiles import Array, Codes, Kind


def read_blocks(blocks: Array, kind: Kind) -> Codes:
    """Blocks of the type that `kind` stores, uint8 [rows, n, bytes]."""
    return _READERS[kind](blocks)


def _half(blocks: Array, at: int) -> Array:
    """The float16 at byte `at` of each block, [rows, n]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0]


def _fields(data: Array, bits: int) -> Array:
    """Bytes [..., n] as [..., 8 / bits, n]: the lowest bits of all, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.asarray(data[..., None, :] >> shifts & np.uint8((1 << bits) - 1))


def _rows(codes: Array) -> Array:
    """Codes [rows, …] as [rows, cols]."""
    return codes.reshape(len(codes), -1)


def _nibbles(blocks: Array, at: int) -> Array:
    """16 bytes as 32 codes: element i below i + 16; [rows, n, 32]."""
    return _fields(blocks[:, :, at : at + 16], 4).reshape(*blocks.shape[:2], 32)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """The fifth bits of 32 codes, a uint32 at byte `at`, in their place; [rows, n, 32]."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, :, at : at + 4]), axis=2, bitorder="little")
    return np.asarray(bits << np.uint8(4))


def _q4_0(blocks: Array) -> Codes:
    return Codes(_rows(_nibbles(blocks, 2)), _half(blocks, 0))


def _q4_1(blocks: Array) -> Codes:
    return Codes(_rows(_nibbles(blocks, 4)), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Array) -> Codes:
    return Codes(_rows(_nibbles(blocks, 6) | _fifth_bits(blocks, 2)), _half(blocks, 0))


def _q5_1(blocks: Array) -> Codes:
    return Codes(_rows(_nibbles(blocks, 8) | _fifth_bits(blocks, 4)), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Array) -> Codes:
    return Codes(_rows(np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8)), _half(blocks, 0))


def _mxfp4(blocks: Array) -> Codes:
    """The scale 2^(e − 128) as bfloat16; subnormal for e = 0 and 1."""
    exponent = blocks[:, :, 0].astype(np.uint16)
    scale = np.where(exponent < 2, np.uint16(32) << exponent, exponent - np.uint16(1) << np.uint16(7))
    return Codes(_rows(_nibbles(blocks, 1)), scale.astype(np.uint16))


def _q2_k(blocks: Array) -> Codes:
    scales, minima = blocks[:, :, :16] & 15, blocks[:, :, :16] >> 4
    codes = _fields(blocks[:, :, 16:80].reshape(*blocks.shape[:2], 2, 32), 2)
    return _in_blocks(codes, scales, _half(blocks, 80), minima, _half(blocks, 82))


def _q3_k(blocks: Array) -> Codes:
    high = _fields(blocks[:, :, :32], 1).reshape(*blocks.shape[:2], 2, 4, 32)
    codes = _fields(blocks[:, :, 32:96].reshape(*blocks.shape[:2], 2, 32), 2) | high << np.uint8(2)
    scales = _fields(blocks[:, :, 96:104], 4).reshape(*blocks.shape[:2], 16)
    scales = scales | _fields(blocks[:, :, 104:108], 2).reshape(*blocks.shape[:2], 16) << np.uint8(4)
    return _in_blocks(codes, scales.view(np.int8) - np.int8(32), _half(blocks, 108))


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """8 scales and 8 minima of 6 bits each from 12 bytes."""
    first, second, high = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([first & 63, high & 15 | first >> 2 & 48], axis=2)
    minima = np.concatenate([second & 63, high >> 4 | second >> 2 & 48], axis=2)
    return scales, minima


def _q4_k(blocks: Array) -> Codes:
    codes = _fields(blocks[:, :, 16:].reshape(*blocks.shape[:2], 4, 32), 4)
    scales, minima = _six_bits(blocks[:, :, 4:16])
    return _in_blocks(codes, scales, _half(blocks, 0), minima, _half(blocks, 2))


def _q5_k(blocks: Array) -> Codes:
    high = _fields(blocks[:, :, 16:48], 1).reshape(*blocks.shape[:2], 4, 2, 32)
    codes = _fields(blocks[:, :, 48:].reshape(*blocks.shape[:2], 4, 32), 4) | high << np.uint8(4)
    scales, minima = _six_bits(blocks[:, :, 4:16])
    return _in_blocks(codes, scales, _half(blocks, 0), minima, _half(blocks, 2))


def _q6_k(blocks: Array) -> Codes:
    low = _fields(blocks[:, :, :128].reshape(*blocks.shape[:2], 2, 64), 4)
    high = _fields(blocks[:, :, 128:192].reshape(*blocks.shape[:2], 2, 32), 2)
    codes = low.reshape(*blocks.shape[:2], 2, 4, 32) | high << np.uint8(4)
    return _in_blocks(codes, blocks[:, :, 192:208], _half(blocks, 208))


def _iq4_xs(blocks: Array) -> Codes:
    codes = _fields(blocks[:, :, 8:].reshape(*blocks.shape[:2], 8, 16), 4)
    low = blocks[:, :, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    high = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = low.reshape(*blocks.shape[:2], 8) | high.astype(np.uint8) << np.uint8(4)
    return _in_blocks(codes, scales.view(np.int8) - np.int8(32), _half(blocks, 0))


def _in_blocks(
    codes: Array, scales: Array, factor: Array, minima: Array | None = None, minimum_factor: Array | None = None
) -> Codes:
    """Codes of blocks of 256 whose minima ggml subtracts; ours are added."""
    minimum = None if minima is None else _rows(np.ascontiguousarray(minima)).view(np.int8)
    negative = None if minimum_factor is None else -minimum_factor
    return Codes(_rows(codes), _rows(np.ascontiguousarray(scales)).view(np.int8), minimum, factor, negative)


_READERS: Final[dict[Kind, Callable[[Array], Codes]]] = {
    Kind.Q4: _q4_0, Kind.Q4_MIN: _q4_1, Kind.Q5: _q5_0, Kind.Q5_MIN: _q5_1, Kind.Q8: _q8_0, Kind.IQ4_NL: _q4_0,
    Kind.MXFP4: _mxfp4, Kind.Q2_K: _q2_k, Kind.Q3_K: _q3_k, Kind.Q4_K: _q4_k, Kind.Q5_K: _q5_k, Kind.Q6_K: _q6_k,
    Kind.IQ4_XS: _iq4_xs,
}  # fmt: skip
