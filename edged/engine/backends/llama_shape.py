"""The shape of a Llama-like network, read from a GGUF file's metadata. Knows no torch.

Keys are those of ggml's `docs/gguf.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from edged.core.errors import ModelError
from edged.models.formats.families import FAMILIES, ROTARY_SCALINGS, GgufFigures, rotary_factors
from edged.models.formats.gguf import GgufFile


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
        return FAMILIES[self.architecture].turned

    @property
    def cache_values(self) -> int:
        """Keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size


def llama_shape(file: GgufFile, context: int | None) -> LlamaShape | None:
    """The shape, or None where the file is of another kind (other architecture, experts, sliding windows, other ropes).

    Raises ModelError `bad_model` where figures are missing or do not fit the tensors.
    """
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        return None
    figures = GgufFigures(file, architecture)
    window, trained = figures.number("attention.sliding_window", 0), figures.whole("context_length")
    if (
        figures.number("expert_count", 0)
        or 0 < window < min(trained, context or trained)
        or figures.word("rope.scaling.type", "none") not in ROTARY_SCALINGS
    ):
        return None
    width, heads = figures.whole("embedding_length"), figures.whole("attention.head_count")
    kv_heads = figures.whole("attention.head_count_kv", heads)
    head_size = figures.whole("attention.key_length", width // heads)
    embedding = file.tensors.get("token_embd.weight")
    turned = figures.whole("rope.dimension_count", head_size)
    base = figures.number("rope.freq_base", 10_000.0)
    fits = embedding is not None and embedding.shape[1:] == (width,) and heads % kv_heads == 0
    if embedding is None or not fits or turned > head_size or turned % 2 or base <= 0:
        raise ModelError("bad_model", f"The sizes in {file.path.name} do not fit together; fetch the model again.")
    factors = rotary_factors(file, figures, turned // 2)
    return LlamaShape(
        architecture=architecture,
        layers=figures.whole("block_count"),
        width=width,
        ffn=figures.whole("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=embedding.shape[0],
        context=trained,
        epsilon=figures.number("attention.layer_norm_rms_epsilon", 1e-5),
        frequencies=tuple(base ** (-2 * pair / turned) / factor for pair, factor in enumerate(factors)),
    )


def weight_count(file: GgufFile) -> int:
    """The number of weights in a file."""
    return sum(prod(tensor.shape) for tensor in file)
