"""A GGUF file with random weights of a shape of `edged pack --shape`, so that a peer can run the same shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edged.models.formats.shape import Shape
from edged.models.packing.shapes import RandomSource


def write_random_gguf(name: str, path: Path, bits: int) -> Path:
    """Writes every matrix, the shared embedding and head too, as Q4_0 or Q8_0 (`bits`). Raises ModelError `missing`."""
    from gguf import GGMLQuantizationType, GGUFWriter

    shape = RandomSource(name).shape
    writer = GGUFWriter(str(path), shape.architecture)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(1.0 / shape.ropes[0].frequencies[1] ** (shape.head_dim / 2))
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)
    kind = GGMLQuantizationType.Q4_0 if bits == 4 else GGMLQuantizationType.Q8_0
    for tensor, rows, cols in _matrices(shape):
        writer.add_tensor(tensor, _blocks(random, rows, cols, bits), raw_dtype=kind)
    for tensor, values in _vectors(shape):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _matrices(shape: Shape) -> list[tuple[str, int, int]]:
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = (
        ("attn_q", q, shape.width),
        ("attn_k", kv, shape.width),
        ("attn_v", kv, shape.width),
        ("attn_output", shape.width, q),
        ("ffn_gate", shape.ffn, shape.width),
        ("ffn_up", shape.ffn, shape.width),
        ("ffn_down", shape.width, shape.ffn),
    )
    tensors = [("token_embd.weight", shape.vocabulary, shape.width)]
    tensors += [
        (f"blk.{layer}.{part}.weight", rows, cols) for layer in range(shape.layers) for part, rows, cols in parts
    ]
    return tensors


def _vectors(shape: Shape) -> list[tuple[str, npt.NDArray[np.float32]]]:
    ones = np.ones(shape.width, np.float32)
    vectors = [("output_norm.weight", ones)]
    for layer in range(shape.layers):
        vectors += [(f"blk.{layer}.{part}.weight", ones) for part in ("attn_norm", "ffn_norm")]
        if shape.family.qkv_bias:
            sizes = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
            vectors += [
                (f"blk.{layer}.attn_{part}.bias", np.zeros(heads * shape.head_dim, np.float32))
                for part, heads in sizes.items()
            ]
    return vectors


def _blocks(random: np.random.Generator, rows: int, cols: int, bits: int) -> npt.NDArray[np.uint8]:
    """Blocks of ggml: a float16 scale, then 32 codes of 4 or 8 bits. The scale gives values of the size 1 / √cols."""
    count, size = rows * cols // 32, 16 if bits == 4 else 32
    blocks = np.empty((count, 2 + size), np.uint8)
    blocks[:, 2:] = random.integers(0, 256, (count, size), np.uint8)
    spread = 4.6 if bits == 4 else 74.0  # standard deviation of evenly drawn codes
    blocks[:, :2] = np.full(count, 1 / (spread * np.sqrt(cols)), np.float16).view(np.uint8).reshape(count, 2)
    return blocks.reshape(rows, -1)
