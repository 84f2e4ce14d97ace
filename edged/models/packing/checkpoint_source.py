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
from edged.models.formats.packed import matrix_names, vector_names
from edged.models.formats.tiles import Codes, Kind
from edged.models.packing.source import (
    Array,
    copy_texts,
    fused_part,
    halves,
    row_order,
    slabs,
    stored_rows,
    taps_first,
    widen,
)

_HUB_NAMES: Final = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
    "qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj",
    "conv_in": "conv.in_proj", "conv_out": "conv.out_proj", "taps": "conv.conv", "embedding": "model.embed_tokens",
    "head": "lm_head", "final_norm": "model.norm", "attention_gate": "self_attn.q_proj",
    "delta_in": "linear_attn.in_proj_qkv", "delta_gate": "linear_attn.in_proj_z", "delta_beta": "linear_attn.in_proj_b",
    "delta_alpha": "linear_attn.in_proj_a", "delta_out": "linear_attn.out_proj", "delta_norm": "linear_attn.norm",
}  # fmt: skip
_IGNORED: Final = (".rotary_emb.inv_freq", ".masked_bias")  # what old files keep beside the weights
_WHOLE_NAMES: Final = {"delta_decay": "linear_attn.A_log", "delta_step_bias": "linear_attn.dt_bias"}
_Place = slice | tuple[int, slice]  # rows, or an expert's rows
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
            stored = _read_checkpoint(folder, self._mappings)
            # Models with an encoder of images have the language model one level below.
            self._stored = {name.replace("model.language_model.", "model.", 1): tensor for name, tensor in stored}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                "bad_model", f"The checkpoint {folder} cannot be read ({error}); fetch it again."
            ) from error
        self.shape = native_shape_from_config(config)
        self.tied = "lm_head.weight" not in self._stored or bool(config.get("tie_word_embeddings"))
        self._check_names()

    def _check_names(self) -> None:
        """Refuses tensors that the forward pass does not use: without them it would compute another model."""
        packed = [name for name, _, _ in matrix_names(self.shape, tied=False)]
        packed += [name for name, _, _ in vector_names(self.shape)]
        wanted = {stored for name in packed for part in halves(name) for stored, _ in self._places(part)}
        ignored = {name for name in self._stored if name.startswith(self.shape.family.ignored)}
        extra = sorted(name for name in self._stored.keys() - wanted - ignored if not name.endswith(_IGNORED))
        if extra:
            raise ModelError(
                "unsupported", f"The native engine does not use the tensor {extra[0]} of {self.name}; use torch."
            )

    def has(self, name: str) -> bool:
        return all(stored in self._stored for part in halves(name) for stored, _ in self._places(part))

    def kind(self, name: str) -> Kind:
        kinds = {self._tensor(stored)[0] for stored, _ in self._places(name)}
        if len(kinds) > 1:
            raise ModelError("unsupported", f"The experts of {self.name} have different types; use torch.")
        return kinds.pop()

    def vector(self, name: str) -> Array:
        ((stored, rows),) = self._places(name)
        kind, values = self._tensor(stored)
        wide = taps_first(widen(values.reshape(-1)[rows], kind), name, self.shape)
        if name.endswith("delta_decay"):
            wide = -np.exp(wide)
        if name.endswith("_norm") and not name.endswith("delta_norm"):
            wide = wide + np.float32(self.shape.family.norm_offset)
        order = self._order(name, len(wide))
        return wide if order is None else wide[order]

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        places = self._places(name)
        own_rows = rows // len(places)
        stored_count = stored_rows(name, own_rows, self.shape)
        order = self._order(name, rows)
        for stored, at in places:
            values = self._tensor(stored)[1]
            fits = values.ndim == (3 if isinstance(at, tuple) else 2)
            if not fits or (values := values[at]).shape != (stored_count, cols):
                raise ModelError(
                    "bad_model",
                    f"Tensor {stored} of {self.name} is {values.shape}, not {(stored_count, cols)}; fetch it again.",
                )
            for part in slabs(own_rows, cols):
                yield values[part] if order is None else values[order[part]]
                for mapping in self._mappings:  # as GgufFile.drop_pages
                    mapping.madvise(mmap.MADV_DONTNEED)

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        raise NotImplementedError("a checkpoint's tensors are floats")

    def write_tokenizer(self, folder: Path) -> None:
        copy_texts(self._folder, folder)

    def _tensor(self, stored: str) -> tuple[Kind, Array]:
        if stored not in self._stored:
            raise ModelError("bad_model", f"{self.name} has no tensor {stored}; fetch the model again.")
        return self._stored[stored]

    def _order(self, name: str, rows: int) -> Array | None:
        return row_order(name, rows, self.shape, pairs=self.shape.family.hub_pairs)

    def _places(self, name: str) -> list[tuple[str, _Place]]:
        """Where a tensor is: its name in the checkpoint and its rows there, or those of each expert."""
        layer, _, part = name.removeprefix("layers.").partition(".")
        if not self.shape.experts or part not in {"gate", "up", "down"}:
            return [self._place(name)]
        names, rows = self.shape.family.hub, slice(None)
        if part not in names:  # in one tensor with the other
            begin = self.shape.ffn if part == "up" else 0
            part, rows = "gate_up", slice(begin, begin + self.shape.ffn)
        module, experts = f"model.layers.{layer}.{names[part]}.weight", range(self.shape.experts)
        return [(module.format(expert), rows if "{}" in module else (expert, rows)) for expert in experts]

    def _place(self, name: str) -> tuple[str, slice]:
        """The same of a tensor that is no expert's."""
        if (part := name.rsplit(".", 1)[-1]) in _WHOLE_NAMES:
            return f"model.layers.{name.split('.')[1]}.{_WHOLE_NAMES[part]}", slice(None)
        kind, name = "bias" if name.endswith("_bias") else "weight", name.removesuffix("_bias")
        hub = {**_HUB_NAMES, **self.shape.family.hub}
        if "." not in name:
            return f"{hub[name]}.{kind}", slice(None)
        _, layer, part = name.split(".")
        rows = slice(None)
        if fused := fused_part(self.shape, part):
            part, first, count = fused
            rows = slice(first, first + count)
        return f"model.layers.{layer}.{hub.get(part)}.{kind}", rows


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
