"""Random blocks of each GGUF type, and what stores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from edged.models.formats.tiles import Kind, tile_codes
from edged.models.packing.gguf_blocks import read_blocks
from edged.models.packing.gguf_source import QUANTIZED

# Where a block's float16 values are: scale, and minimum where there is one.
_HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (),
}  # fmt: skip
# The spread of the values that evenly drawn codes and scales stand for, where the block's scale is 1.
_SPREAD = {
    "Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q5_1": 9.2, "Q8_0": 74.0, "Q2_K": 12.0, "Q3_K": 43.0, "Q4_K": 340.0,
    "Q5_K": 700.0, "Q6_K": 1400.0, "IQ4_NL": 74.0, "IQ4_XS": 1400.0,
}  # fmt: skip
# The mean of evenly drawn codes, for types whose minima can make it 0.
_MIDDLE = {"Q4_1": 7.5, "Q5_1": 15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def block_of(kind: str) -> int:
    """The weights in one block of a type."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]


def random_blocks(kind: str, rows: int, cols: int, seed: int = 0, size: float | None = None) -> np.ndarray:
    """Rows of random blocks of a type, uint8 [rows, bytes].

    `size`: about the size of the weights; None: scales of any size, among them 0, subnormal and negative ones.
    """
    random = np.random.default_rng(seed)
    per_block, length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows * cols // per_block, length), np.uint8)
    for at in _HALVES[kind]:
        if size is None:
            halves = random.integers(0, 1 << 16, len(blocks), np.uint16)
            halves[::7] = random.choice(np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF], np.uint16), len(halves[::7]))
            halves[halves & 0x7C00 == 0x7C00] &= 0xBFFF
        else:
            halves = (random.uniform(0.5, 1.5, len(blocks)) * size / _SPREAD[kind]).astype(np.float16).view(np.uint16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    if kind == "MXFP4":
        exponents = random.integers(0, 253, len(blocks)) if size is None else 128 + np.rint(np.log2(size / 6))
        blocks[:, 0] = exponents
    return blocks.reshape(rows, -1)


def fill_with_blocks(model: Any, kind: str) -> Callable[[np.ndarray], tuple[str, np.ndarray] | None]:
    """Gives a transformers model matrices that random blocks of a type stand for, about as large as they were.

    Rows that are no whole blocks get Q8_0; vectors and matrices of few rows, such as routers, stay. Returns what finds
    the type and the blocks of a tensor whose rows are some of these, in any order.
    """
    import torch

    rows_found: dict[bytes, tuple[str, np.ndarray]] = {}
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            cols = parameter.shape[-1]
            if parameter.ndim < 2 or parameter.shape[-2] < 32 or cols % 32:
                continue
            own = kind if cols % block_of(kind) == 0 else "Q8_0"
            blocks = random_blocks(own, parameter.numel() // cols, cols, seed, float(parameter.std()))
            _centre(blocks.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[own]][1]), own)
            values = values_of(blocks, own)
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
            rows_found |= {row.tobytes(): (own, stored) for row, stored in zip(values, blocks, strict=True)}

    def find(values: np.ndarray) -> tuple[str, np.ndarray] | None:
        rows = [rows_found.get(row.tobytes()) for row in values.reshape(-1, values.shape[-1])]
        known = [row for row in rows if row]
        if values.ndim < 2 or len(known) < len(rows):
            return None
        return known[0][0], np.stack([blocks for _, blocks in known]).reshape(*values.shape[:-1], -1)

    return find


def _centre(blocks: np.ndarray, kind: str) -> None:
    """Gives blocks minima that make the mean of their weights about 0, as a model's are; uint8 [blocks, bytes]."""
    if kind not in _MIDDLE:
        return
    scale, minimum = _HALVES[kind]
    sign = -1 if kind in {"Q4_1", "Q5_1"} else 1  # K types subtract theirs
    values = blocks[:, scale : scale + 2].copy().view(np.float16) * np.float16(sign * _MIDDLE[kind])
    blocks[:, minimum : minimum + 2] = values.view(np.uint8)
    if kind == "Q2_K":  # scales in the low nibbles, minima in the high ones
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    elif kind in {"Q4_K", "Q5_K"}:  # four scales, four minima, low nibbles of four more of each
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17


def values_of(blocks: np.ndarray, kind: str) -> np.ndarray:
    """What the gguf package says that rows of blocks stand for, float32 [rows, cols]."""
    return np.asarray(gguf.dequantize(blocks, GGMLQuantizationType[kind]), np.float32)


def tiled(blocks: np.ndarray, kind: str) -> tuple[Kind, int, bytes]:
    """The packed kind, its group and the tiles of rows of blocks."""
    packed = QUANTIZED[kind]
    group = packed.groups[0]
    length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    codes = read_blocks(blocks.reshape(len(blocks), -1, length), packed)
    return packed, group, tile_codes(codes, packed, group)


def scale_bytes(kind: str) -> list[int]:
    """The places of a block's float16 scales (or of its exponent) in bytes."""
    return [at + byte for at in _HALVES[kind] for byte in (0, 1)] or [0]


WIDTH, FFN, VOCABULARY, HEADS, KV_HEADS, DIM = 256, 512, 50, 8, 4, 32
_SIZES = {
    "attn_q": (HEADS * DIM, WIDTH), "attn_k": (KV_HEADS * DIM, WIDTH), "attn_v": (KV_HEADS * DIM, WIDTH),
    "attn_output": (WIDTH, HEADS * DIM), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN),
}  # fmt: skip


def write_model(
    path: Path, types: Mapping[str, str], default: str = "F32", layers: int = 1, file_type: int | None = None
) -> dict[str, np.ndarray]:
    """A random Llama whose matrices have the types that `types` gives for their names without the layer (`ffn_up`,
    `token_embd`), or `default`. Returns the values of all tensors by their names."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM)
    if file_type is not None:
        writer.add_file_type(file_type)
    sizes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    sizes |= {f"blk.{layer}.{name}": size for layer in range(layers) for name, size in _SIZES.items()}
    values = {}
    for seed, (name, (rows, cols)) in enumerate(sizes.items()):
        kind = types.get(name.rsplit(".", 1)[-1], default)
        number = GGMLQuantizationType[kind]
        if kind in _HALVES:
            data = random_blocks(kind, rows, cols, seed, 1 / np.sqrt(cols))
        else:
            data = gguf.quantize((random.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32), number)
        values[f"{name}.weight"] = values_of(data, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=number)
    for name in ["output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(layers) for part in ("attn", "ffn"))]:
        values[f"{name}.weight"] = random.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values[f"{name}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
