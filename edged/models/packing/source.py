"""What can be packed, as the packer sees it: tensors by their packed names.

A matrix is read some rows at a time, so that memory does not grow with the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edged.models.formats.shape import Shape
from edged.models.formats.tiles import Codes, Kind

Array = npt.NDArray[Any]
SLAB: Final = 4_000_000  # weights handled at once
_HUB_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Source(Protocol):
    """Tensors of one model. Names are those of the packed folder."""

    name: str
    file_type: str  # the source's name for its quantization; may be empty
    shape: Shape
    tied: bool

    def has(self, name: str) -> bool:
        """Whether the source has the vector."""

    def kind(self, name: str) -> Kind:
        """How the matrix is stored in the source."""

    def vector(self, name: str) -> Array:
        """A norm's weight or a bias, float32 [n]."""

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        """A matrix as slabs of rows: float32, float16, or bfloat16 as uint16 (`kind` says which)."""

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        """A matrix that is stored as codes, as slabs of rows with its codes and scales."""

    def write_tokenizer(self, folder: Path) -> None:
        """Writes what the tokenizer and the chat template need into a packed folder."""


def halves(name: str) -> tuple[str, ...]:
    """The source's tensors behind a packed one: gate and up, or their biases, are two there."""
    return tuple(name.replace("gate_up", part) for part in ("gate", "up")) if ".gate_up" in name else (name,)


def fused_part(shape: Shape, part: str) -> tuple[str, int, int] | None:
    """Where the family has query, key and value, or gate and up, in one tensor: that tensor (`qkv`, `gate_up`), and the
    first row and the number of rows of the part."""
    if part not in shape.family.fused:
        return None
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "query": ("qkv", 0, q),
        "key": ("qkv", q, kv),
        "value": ("qkv", q + kv, kv),
        "gate": ("gate_up", 0, shape.ffn),
        "up": ("gate_up", shape.ffn, shape.ffn),
    }[part]


def unpaired(name: str, rows: int, shape: Shape) -> Array | None:
    """Row indices that undo a file's order of a query or key head's rows, 0, R/2, 1, R/2 + 1, … of R rotated ones;
    None for other tensors."""
    if name.rsplit(".", 1)[-1] not in {"query", "key", "query_bias", "key_bias"}:
        return None
    heads: Array = np.arange(rows).reshape(-1, shape.head_dim)
    turned = heads[:, : shape.rotated].reshape(len(heads), -1, 2).transpose(0, 2, 1).reshape(len(heads), -1)
    return np.asarray(np.concatenate([turned, heads[:, shape.rotated :]], axis=1).reshape(-1))


def row_order(name: str, rows: int, shape: Shape, *, pairs: bool) -> Array | None:
    """Which rows of a file's tensor make a packed one of `rows` rows; None: all in their order.

    `pairs`: the file has `unpaired`'s order.
    """
    part = name.rsplit(".", 1)[-1]
    if shape.family.gated and part in {"query", "attention_gate"}:
        halves_of_heads = np.arange(2 * rows).reshape(-1, 2, shape.head_dim)
        return np.asarray(halves_of_heads[:, int(part == "attention_gate")].reshape(-1))
    return unpaired(name, rows, shape) if pairs else None


def stored_rows(name: str, rows: int, shape: Shape) -> int:
    """The rows of a file's tensor behind a packed one of `rows` rows: queries may lie with their gates."""
    gated = shape.family.gated and name.endswith((".query", ".attention_gate"))
    return 2 * rows if gated else rows


def taps_first(values: Array, name: str, shape: Shape) -> Array:
    """A convolution's weights, which files hold channel by channel, as [taps, channels]; other vectors as they are."""
    if not name.endswith(".taps") or values.size % shape.taps:  # another size is refused by the packer
        return values
    return np.asarray(values.reshape(-1, shape.taps).T.reshape(-1))


def copy_texts(source: Path, folder: Path) -> None:
    """Copies a checkpoint folder's tokenizer, chat template and small configuration files."""
    for name in _HUB_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def slabs(rows: int, cols: int) -> Iterator[slice]:
    """Ranges of rows, each of about SLAB weights and (but for the last) a multiple of 32 rows."""
    step = max(32, SLAB // cols // 32 * 32)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def widen(values: Array, kind: Kind) -> Array:
    """Values of a float kind as float32."""
    if kind is Kind.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values.astype(np.float32))
