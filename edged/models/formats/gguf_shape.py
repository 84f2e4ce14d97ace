"""The shape that a GGUF file's metadata describes. Keys are those of ggml's `docs/gguf.md`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.formats.gguf import GgufFile
from edged.models.formats.rope import base_frequencies
from edged.models.formats.shape import FAMILIES, Shape, check_native, not_native

_ROPE_SCALINGS: Final = frozenset({"none", "linear"})  # of those that GGUF files name


def shape_from_gguf(file: GgufFile) -> Shape:
    """The shape of a decoder of the Llama family; its context is the one of its training.

    Raises ModelError `unsupported` for another architecture, a mixture of experts or another rotary scaling,
    `bad_model` where figures are missing or do not fit the tensors.
    """
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise not_native(f"the architecture {str(architecture)[:60]!r}")
    figures = _Figures(file, architecture)
    if figures.number("expert_count", 0):
        raise not_native("a mixture of experts")
    scaling = figures.word("rope.scaling.type", "none")
    if scaling not in _ROPE_SCALINGS:
        raise not_native(f"rotary embedding of the kind {scaling[:60]!r}")
    width, heads = figures.whole("embedding_length"), figures.whole("attention.head_count")
    kv_heads = figures.whole("attention.head_count_kv", heads)
    head_dim = figures.whole("attention.key_length", width // heads)
    embedding = file.tensors.get("token_embd.weight")
    rotated = figures.whole("rope.dimension_count", head_dim)
    fits = embedding is not None and embedding.shape[1:] == (width,) and heads % kv_heads == 0
    if embedding is None or not fits or rotated > head_dim or rotated % 2:
        raise ModelError("bad_model", f"The sizes in {file.path.name} do not fit together; fetch the model again.")
    return Shape(
        architecture=architecture,
        layers=figures.whole("block_count"),
        width=width,
        ffn=figures.whole("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=embedding.shape[0],
        context=figures.whole("context_length"),
        epsilon=figures.number("attention.layer_norm_rms_epsilon", 1e-5),
        frequencies=_frequencies(file, figures, rotated),
    )


def sliding_window(file: GgufFile, architecture: str) -> int:
    """The most tokens that attention looks back over; 0 for all of them. Raises ModelError `bad_model`."""
    return max(0, int(_Figures(file, architecture).number("attention.sliding_window", 0)))


def native_shape_from_gguf(file: GgufFile) -> Shape:
    """The shape as the native engine runs it: within the sliding window, where there is one. Raises ModelError."""
    shape = shape_from_gguf(file)
    if 2 * len(shape.frequencies) != shape.head_dim:
        raise not_native("rotary embedding over a part of the head")
    if _Figures(file, shape.architecture).whole("attention.value_length", shape.head_dim) != shape.head_dim:
        raise not_native("values of another size than keys")
    window = sliding_window(file, shape.architecture)
    return check_native(replace(shape, context=min(shape.context, window or shape.context)))


def _frequencies(file: GgufFile, figures: _Figures, rotated: int) -> tuple[float, ...]:
    """The base frequencies, each divided by the linear scaling times the factor that the file lists for it."""
    linear = figures.word("rope.scaling.type", "none") == "linear"
    common = figures.number("rope.scaling.factor", 1.0) if linear else 1.0
    listed = file.dequantize("rope_freqs.weight") if "rope_freqs.weight" in file.tensors else [1.0] * (rotated // 2)
    factors = [common * float(value) for value in listed]
    if len(factors) != rotated // 2 or not all(factor > 0 for factor in factors):
        raise ModelError("bad_model", f"The rotary factors in {file.path.name} do not fit its heads; fetch it again.")
    plain = base_frequencies(figures.number("rope.freq_base", 10_000.0), rotated)
    return tuple(value / factor for value, factor in zip(plain, factors, strict=True))


class _Figures:
    """Metadata of one architecture, each value of the kind that is wanted; ModelError `bad_model` for others."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture

    def whole(self, key: str, default: int | None = None) -> int:
        """A number from 1 to 10,000,000."""
        value = self._get(key, default)
        if not isinstance(value, int) or not 1 <= value <= 10_000_000:
            raise self._wrong(key, value)
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value)
        return float(value)

    def word(self, key: str, default: str) -> str:
        """A text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def _get(self, key: str, default: Any) -> Any:
        return self._file.get(f"{self._architecture}.{key}", default)

    def _wrong(self, key: str, value: Any) -> ModelError:
        shown = repr(value)[:60]
        name = self._file.path.name
        return ModelError("bad_model", f"{name} gives {shown} for {self._architecture}.{key}; fetch it again.")
