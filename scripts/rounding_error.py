"""What rounding to 4 bits loses, for each way to store scales, beside ggml's Q4_0; and what it loses beside a group
that is larger than the others of its row: two tables of docs/benchmarks/2026-11-rounding.md.

.venv/bin/python scripts/rounding_error.py
"""

from __future__ import annotations

import gguf
import numpy as np

from edged.engine.kernels.library import Tensor, load_library
from edged.models.formats.tiles import Kind, packed_bytes, tile_codes
from edged.models.packing.rounding import quantize

ROWS, COLS, GROUP = 256, 896, 32


def stored(values: np.ndarray, kind: Kind) -> np.ndarray:
    """The values that the kernels read out of the packed matrix."""
    data = np.frombuffer(tile_codes(quantize(values, kind, GROUP), kind, GROUP), np.uint8)
    buffer = np.zeros(len(data) + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    buffer[start : start + len(data)] = data
    tensor = Tensor(kind, ROWS, COLS, GROUP, buffer.ctypes.data + start, len(data))
    out = np.empty((ROWS, COLS), np.float32)
    for row in range(ROWS):
        load_library().dequantize(tensor, row, out[row].ctypes.data)
    return out


def q4_0(values: np.ndarray) -> np.ndarray:
    """Rounded by ggml."""
    kind = gguf.GGMLQuantizationType.Q4_0
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))


def error(rounded: np.ndarray, values: np.ndarray) -> float:
    """Mean squared error in thousandths of the mean square."""
    return float(1e3 * np.square(rounded - values).sum() / np.square(values).sum())


def beside_a_large_group(normal: np.ndarray) -> None:
    """Prints the error of all but the second group, which is `times` as large."""
    print("\n| one group larger | q4_min | q4_byte_min |\n|---|---|---|")
    others = np.arange(COLS) // GROUP != 1
    for times in (5, 10, 20, 60):
        values = np.where(others, normal, normal * times).astype(np.float32)
        kinds = (Kind.Q4_MIN, Kind.Q4_BYTE_MIN)
        errors = [error(stored(values, kind)[:, others], values[:, others]) for kind in kinds]
        print(f"| {times} × | {errors[0]:.2f} | {errors[1]:.2f} |")


def main() -> None:
    """Prints the tables."""
    random = np.random.default_rng(0)
    spread = np.exp(random.standard_normal(COLS))
    normal, tails = random.standard_normal((ROWS, COLS)), random.standard_t(4, (ROWS, COLS))
    samples = {"normal": normal, "Student's t, 4": tails, "columns of different size": normal[::-1] * spread}
    print("| | bits | " + " | ".join(samples) + " |\n" + "|---" * (2 + len(samples)) + "|")
    for name, kind in (("ggml's Q4_0", None), *((kind.name.lower(), kind) for kind in Kind if kind.bits == 4)):
        bits = packed_bytes(kind, ROWS, COLS, GROUP) * 8 / ROWS / COLS if kind else 4.5
        errors = []
        for sample in samples.values():
            values = (sample * 0.02).astype(np.float32)
            rounded = stored(values, kind) if kind else q4_0(values)
            errors.append(error(rounded, values))
        print(f"| {name} | {bits:.2f} | " + " | ".join(f"{one:.2f}" for one in errors) + " |")
    beside_a_large_group(normal)


if __name__ == "__main__":
    main()
