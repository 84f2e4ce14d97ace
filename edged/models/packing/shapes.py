"""Random weights of well-known shapes, to measure speed without fetching a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.formats.config_shape import native_shape_from_config
from edged.models.formats.shape import Shape
from edged.models.formats.tiles import Codes, Kind
from edged.models.packing.source import copy_texts, slabs

# Figures of the models' published config.json files; all of these tie head and embedding.
_CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    },
    "smollm2-135m": {
        "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5,
    },
    "smollm2-360m": {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 960, "intermediate_size": 2560,
        "num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49_152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128_256, "max_position_embeddings": 131_072,

        "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
SHAPES: Final = tuple(_CONFIGS)


class RandomSource:
    """Normally distributed weights, scaled so that activations stay near 1. The same shape gives the same weights.

    `texts`: a checkpoint folder whose tokenizer is added; without one the model takes token ids alone.
    """

    tied = True
    file_type = ""

    def __init__(self, name: str, texts: Path | None = None) -> None:
        if name not in _CONFIGS:
            raise ModelError("missing", f"There is no shape {name}; choose one of {', '.join(SHAPES)}.")
        self.name = name
        if texts and not (texts / "tokenizer.json").is_file():
            raise ModelError("missing", f"{texts} has no tokenizer.json; name the folder that holds one.")
        self._texts = texts
        self.shape: Shape = native_shape_from_config(_CONFIGS[name])

    def kind(self, name: str) -> Kind:
        del name
        return Kind.F32

    def vector(self, name: str) -> npt.NDArray[Any]:
        shape = self.shape
        sizes = {"query_bias": shape.heads, "key_bias": shape.kv_heads, "value_bias": shape.kv_heads}
        part = name.rsplit(".", 1)[-1]
        if part in sizes:
            return np.zeros(sizes[part] * shape.head_dim, np.float32)
        return np.ones(shape.head_dim if part in {"query_norm", "key_norm"} else shape.width, np.float32)

    def floats(self, name: str, rows: int, cols: int) -> Iterator[npt.NDArray[Any]]:
        random = np.random.default_rng(sum(name.encode()))
        for part in slabs(rows, cols):
            yield random.standard_normal((part.stop - part.start, cols), np.float32) / np.float32(np.sqrt(cols))

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        raise NotImplementedError("random weights are floats")

    def write_tokenizer(self, folder: Path) -> None:
        if self._texts:
            copy_texts(self._texts, folder)
