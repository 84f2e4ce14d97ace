"""The shape of a Llama-like network, read from a GGUF file's metadata. Knows no torch.

Keys are those of ggml's `docs/gguf.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from edged.core.errors import ModelError
from edged.models.gguf_file import GgufFile

ARCHITECTURES: Final = frozenset({"llama", "qwen2", "qwen3", "mistral"})


@dataclass(frozen=True)
class LlamaShape:
    """`frequencies` are the rotary embedding's, in radians a position, one for each pair of a head."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    frequencies: tuple[float, ...]

    @property
    def interleaved(self) -> bool:
        """Whether a head's query and key rows lie in the order 0, E/2, 1, E/2 + 1, … (Llama's converter does so)."""
        return self.architecture in {"llama", "mistral"}

    @property
    def cache_values(self) -> int:
        """Keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size


def llama_shape(file: GgufFile, context: int | None) -> LlamaShape | None:
    """The shape, or None where the file is of another kind (other architecture, experts, sliding windows, other ropes).

    Raises ModelError `bad_model` where figures are missing or do not fit the tensors.
    """
    architecture = file.get("general.architecture")
    if architecture not in ARCHITECTURES:
        return None
    window = file.get(f"{architecture}.attention.sliding_window")
    trained = _figure(file, f"{architecture}.context_length")
    scaling = file.get(f"{architecture}.rope.scaling.type", "none")
    if (
        file.get(f"{architecture}.expert_count")
        or (window and window < min(trained, context or trained))
        or scaling not in {"none", "linear"}
    ):
        return None
    width, heads = (
        _figure(file, f"{architecture}.embedding_length"),
        _figure(file, f"{architecture}.attention.head_count"),
    )
    kv_heads = _figure(file, f"{architecture}.attention.head_count_kv", heads)
    head_size = _figure(file, f"{architecture}.attention.key_length", width // heads)
    embedding = file.tensors.get("token_embd.weight")
    turned = _figure(file, f"{architecture}.rope.dimension_count", head_size)
    if embedding is None or embedding.shape[1:] != (width,) or heads % kv_heads or turned > head_size or turned % 2:
        raise ModelError("bad_model", f"The sizes in {file.path.name} do not fit together; fetch the model again.")
    if "rope_freqs.weight" in file.tensors:
        factors = [float(value) for value in file.dequantize("rope_freqs.weight")]
    else:
        factors = [1.0] * (turned // 2)
    if scaling == "linear":
        stretch = float(file.get(f"{architecture}.rope.scaling.factor", 1.0))
        factors = [factor * stretch for factor in factors]
    base = float(file.get(f"{architecture}.rope.freq_base", 10_000.0))
    if len(factors) != turned // 2 or min(factors) <= 0 or base <= 0:
        raise ModelError("bad_model", f"The rotary factors in {file.path.name} do not fit its heads; fetch it again.")
    return LlamaShape(
        architecture=architecture,
        layers=_figure(file, f"{architecture}.block_count"),
        width=width,
        ffn=_figure(file, f"{architecture}.feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=embedding.shape[0],
        context=trained,
        epsilon=float(file.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)),
        frequencies=tuple(base ** (-2 * pair / turned) / factor for pair, factor in enumerate(factors)),
    )


def weight_count(file: GgufFile) -> int:
    """The number of weights in a file."""
    return sum(prod(tensor.shape) for tensor in file)


def _figure(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.get(key, default)
    if not isinstance(value, int) or not 1 <= value <= 10_000_000:
        raise ModelError("bad_model", f"{file.path.name} gives {value!r} for {key}; fetch or convert the model again.")
    return value
