"""Checkpoint folders as something to pack."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from edged.core.errors import ModelError
from edged.models.formats.config_shape import native_shape_from_config
from edged.models.formats.tiles import Codes, Kind
from edged.models.packing.source import Array, copy_texts, slabs, widen

_HUB_NAMES: Final = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
    "query_bias": "self_attn.q_proj", "key_bias": "self_attn.k_proj", "value_bias": "self_attn.v_proj",
}  # fmt: skip
_DTYPES: Final = {"F32": (Kind.F32, np.float32), "F16": (Kind.F16, np.float16), "BF16": (Kind.BF16, np.uint16)}


class CheckpointSource:
    """A folder that transformers' `save_pretrained` wrote: `config.json` and safetensors files."""

    file_type = ""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._folder = folder
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            self._mappings: list[mmap.mmap] = []
            self._stored = dict(_read_checkpoint(folder, self._mappings))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                "bad_model", f"The checkpoint {folder} cannot be read ({error}); fetch it again."
            ) from error
        self.shape = native_shape_from_config(config)
        self.tied = "lm_head.weight" not in self._stored or bool(config.get("tie_word_embeddings"))
        if any(name.endswith(".o_proj.bias") for name in self._stored):
            raise ModelError(
                "unsupported", f"{self.name} has a bias after attention, which the native engine does not run."
            )
        if any(name.endswith(".q_proj.bias") for name in self._stored) != self.shape.family.qkv_bias:
            raise ModelError(
                "unsupported", f"The attention biases of {self.name} are not those of its architecture; use torch."
            )

    def kind(self, name: str) -> Kind:
        return self._tensor(name)[0]

    def vector(self, name: str) -> Array:
        kind, values = self._tensor(name)
        return widen(values.reshape(-1), kind)

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        values = self._tensor(name)[1]
        if values.shape != (rows, cols):
            raise ModelError(
                "bad_model", f"Tensor {name} of {self.name} is {values.shape}, not {(rows, cols)}; fetch it again."
            )
        for part in slabs(rows, cols):
            yield values[part]
            for mapping in self._mappings:  # as GgufFile.drop_pages
                mapping.madvise(mmap.MADV_DONTNEED)

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        raise NotImplementedError("a checkpoint's tensors are floats")

    def write_tokenizer(self, folder: Path) -> None:
        copy_texts(self._folder, folder)

    def _tensor(self, name: str) -> tuple[Kind, Array]:
        top = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "final_norm": "model.norm.weight"}
        if name in top:
            stored = top[name]
        else:
            _, layer, part = name.split(".")
            stored = f"model.layers.{layer}.{_HUB_NAMES[part]}.{'bias' if part.endswith('_bias') else 'weight'}"
        if stored not in self._stored:
            raise ModelError("bad_model", f"{self.name} has no tensor {stored}; fetch the model again.")
        return self._stored[stored]


def _read_checkpoint(folder: Path, mappings: list[mmap.mmap]) -> Iterator[tuple[str, tuple[Kind, Array]]]:
    """Every tensor of a folder's safetensors files, mapped and not read. `mappings` gets the files' mappings."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError("it has no safetensors file")
    for path in paths:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mappings.append(data)
        length = int.from_bytes(data[:8], "little")
        if length > min(100_000_000, len(data) - 8):
            raise ValueError(f"the header of {path.name} is longer than the file")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise ModelError(
                    "unsupported", f"Tensor {name} of {path.name} is stored as {entry['dtype']}; use F32, F16 or BF16."
                )
            kind, dtype = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            shape = [int(size) for size in entry["shape"]]
            count = int(np.prod(shape, dtype=np.int64)) if shape else 1
            if not 0 <= begin <= end <= len(data) - 8 - length or end - begin != count * np.dtype(dtype).itemsize:
                raise ValueError(f"tensor {name} of {path.name} does not fit the file")
            yield name, (kind, np.frombuffer(data, dtype, count, 8 + length + begin).reshape(shape))
