"""Writes `docs/reference/models.md`: each family, type and backend with its largest difference from transformers.

    python -m tests.models_table [ENTRY…]

ENTRY: of `FAMILIES`; the lines of the others are kept as they are. All of them take about 5 minutes. Needs torch,
transformers and gguf. The models are tiny and random; the reference has the weights that the file represents, so
rounding a model is not counted.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edged.core.errors import ModelError
from edged.engine.backends.base import Slice
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.backends.torch_backend import TorchBackend
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import open_packed
from edged.models.packing.gguf_source import QUANTIZED
from edged.models.packing.pack import pack_path
from edged.models.store.locate import LocatedModel
from tests.native.families import FAMILIES, reference, write_gguf
from tests.native.gguf_types import block_of, fill_with_blocks
from tests.native.helpers import align_queries, tiny_checkpoint

PAGE: Final = Path(__file__).parents[1] / "docs/reference/models.md"
ROUTERS: Final = ("router.layer.weight", "router.weight", "mlp.gate.weight")  # llama.cpp leaves them as they are
CONVOLUTIONS: Final = ("conv1d", ".conv.conv")  # the same
FLOATS: Final = ("F32", "F16", "BF16")
SMALL: Final = tuple(kind for kind in QUANTIZED if block_of(kind) == 32)
LARGE: Final = tuple(kind for kind in QUANTIZED if block_of(kind) == 256)
# The page's tables: heading and columns.
TABLES: Final = (
    ("The native engine: floats and blocks of 32 weights", ("floats", *SMALL)),
    ("The native engine: blocks of 256 weights", LARGE),
    ("The torch backend", ("GGUF", "8 bits")),
)
SIZES: Final[dict[str, Any]] = {"intermediate_size": 96, "vocab_size": 224}  # whole blocks of 32
WIDE: Final = 256
PEOPLE: Final = {
    "llama": "Llama, SmolLM2, TinyLlama",
    "mistral": "Mistral",
    "ministral3": "Ministral 3",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3 (dense)",
    "qwen3_moe": "Qwen3 (mixture of experts)",
    "granitemoe": "Granite (mixture of experts)",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "granite": "Granite 3, 4 (dense)",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "ernie4_5": "ERNIE 4.5 (dense)",
    "hunyuan": "Hunyuan (dense)",
    "exaone4": "EXAONE 4",
    "phi3": "Phi-3, Phi-4-mini",
    "stablelm": "StableLM",
    "glm4": "GLM-4 (dense)",
    "lfm2": "LFM2, LFM2.5",
    "qwen3_5": "Qwen3.5 (dense)",
}
HEAD: Final = """# Models

What each backend computes, and how far its logits are from those of transformers in float32.

This page is written by `python -m tests.models_table`.
Each figure is the largest difference over a prompt of 300 tokens, as a part of the largest logit.
The models are tiny and random, with windows and original contexts of 40 to 100 tokens; the
reference has the weights that the file represents.

- *Floats* are checkpoint folders and GGUF files in F32, F16 and BF16, unrounded.
- Each other type is that of all matrices of a GGUF file, filled with random blocks; those whose
  rows are no multiple of 256 are Q8_0 in place of a type with blocks of 256.
- The native engine keeps keys and values in float16.
  With float weights that is nearly all of its difference.
- Weights of the other types meet activations of 8 bits in the native engine: that is nearly all of
  the difference there. Such weights are not rounded, in any backend.
- *GGUF* is the largest difference of torch over all of these types that it reads. The torch backend
  widens GGUF files to float32 or bfloat16; the figure is that of float32.
- *8 bits* is a checkpoint folder in torch, rounded as it is at load, over 90 tokens; the figure is
  the effect of rounding.
- In a mixture of experts, rounding decides which of two nearly equal experts computes a token.
  The routers of the tiny models weigh the last expert of a token little, so that the figures show
  the rest.
- A file with a tensor that is not used, or with metadata that is not applied, is refused by name in
  both backends.
- A dash: the torch backend does not read such GGUF files.
- A rotary scaling that depends on the length (LongRoPE) is the one for the context that the model
  is loaded with: up to the context of the first training the short one, which is the default.
"""


def name_of(entry: str) -> str:
    """How a line of the page names an entry of FAMILIES."""
    family = FAMILIES[entry][0]
    what = entry.partition(", ")[2] or ("" if entry == family else entry)
    return f"{PEOPLE[family].partition(',')[0]}: {what}" if what else PEOPLE[family]


def measure(entry: str) -> dict[str, float]:
    """The largest differences of an entry, by column."""
    family, changes = FAMILIES[entry]
    tokens = np.random.default_rng(1).integers(0, 224, 300).tolist()
    own = tokens[:40] if entry == "mistral" else tokens  # GGUF files of Mistral do not say their window
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_checkpoint(folder / "checkpoint", family, **{**SIZES, **changes})
        expected = reference(model, tokens)
        floats, of_torch = [_relative(_native(folder / "checkpoint", tokens), expected)], []
        rounded = _hub(folder / "checkpoint", tokens[:90])
        found["8 bits"] = _relative(rounded, reference(model, tokens[:90]))
        for kind in FLOATS:
            path = write_gguf(model, folder / f"{kind}.gguf", kind)
            expected = reference(_stored_as(model, kind), own)
            floats.append(_relative(_native(path, own), expected))
            of_torch.append(_relative(_torch(path, own), expected))
        model = tiny_checkpoint(folder / "wide", family, **_wide(changes))
        for kind in QUANTIZED:
            blocks = fill_with_blocks(model, kind)
            align_queries(model, 0.0)
            path = write_gguf(model, folder / f"{kind}.gguf", blocks=blocks)
            expected = reference(model, own)
            found[kind] = _relative(_native(path, own), expected)
            of_torch.append(_relative(_torch(path, own), expected))
        return found | {
            "floats": max(floats),
            "GGUF": max((one for one in of_torch if not math.isnan(one)), default=math.nan),
        }


def _wide(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures with heads of the same size and rows of 256 weights."""
    heads = WIDE * changes.get("num_attention_heads", 4) // changes.get("hidden_size", 64)
    sizes = {"hidden_size": WIDE, "intermediate_size": WIDE, "vocab_size": 224, "initializer_range": 0.03}
    return {**changes, **sizes, "num_attention_heads": heads, "num_key_value_heads": heads // 2}


def _relative(a: np.ndarray | None, b: np.ndarray) -> float:
    return math.nan if a is None else float(np.abs(a - b).max() / np.abs(b).max())


def _stored_as(model: Any, kind: str) -> Any:
    """The model with its matrices rounded to floats of this type."""
    import copy

    import torch

    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if parameter.ndim >= 2 and not name.endswith(ROUTERS) and not any(part in name for part in CONVOLUTIONS):
                parameter.copy_(parameter.to(dtype).float())
    return changed


def _native(source: Path, tokens: list[int]) -> np.ndarray:
    packed = source.with_name(f"{source.name}.packed")
    pack_path(source, packed)
    with NativeModel(open_packed(packed), context=512, blocks=16, threads=1) as model:
        return model.step([Part(tokens, 0, range(16), len(tokens), next_state=0)])


def _torch(path: Path, tokens: list[int]) -> np.ndarray | None:
    from edged.engine.backends import torch_gguf

    file = open_gguf(path)
    shape = torch_gguf.written_out(file)
    if shape is None:
        try:
            return _hub(path, tokens, "gguf", exact=True)
        except ModelError:  # transformers does not read this architecture, or this type
            return None
    return _all_logits(torch_gguf.open_llama(file, shape, 512, "cpu", _quiet, lambda: 1 << 40, exact=True), tokens)


def _hub(
    path: Path, tokens: list[int], form: Literal["checkpoint", "gguf"] = "checkpoint", *, exact: bool = False
) -> np.ndarray:
    from edged.engine.backends import torch_hub

    located = LocatedModel(path.name, path, "", form, 0)
    return _all_logits(torch_hub.open_hub(located, None, "cpu", _quiet, lambda: 1 << 40, exact=exact), tokens)


def _quiet(_: str) -> None:
    """Progress that nobody reads."""


def _all_logits(backend: TorchBackend, tokens: list[int]) -> np.ndarray:
    slot, rows = backend.open(), []
    for at in range(0, len(tokens), 256):
        logits = backend.run([Slice(slot, at, tokens[at : at + 256])], every=True)[0]
        assert isinstance(logits, np.ndarray)
        rows.append(logits)
    return np.concatenate(rows)


def page_figures(text: str) -> list[tuple[list[str], dict[str, list[str]]]]:
    """The tables of a page: the columns, and the figures of each line by its name."""
    tables: list[tuple[list[str], dict[str, list[str]]]] = []
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| family |"):
            tables.append((cells[1:], {}))
        elif line.startswith("| "):
            tables[-1][1][cells[0]] = cells[1:]
    return tables


def written(old: str, measured: Mapping[str, Mapping[str, float]]) -> str:
    """The page: lines of what was measured, and those of other entries from the old page, where it has them."""
    kept: dict[tuple[str, str], str] = {
        (name, column): figure
        for columns, lines in page_figures(old)
        for name, figures in lines.items()
        for column, figure in zip(columns, figures, strict=True)
    }
    page = HEAD
    for heading, columns in TABLES:
        shown = [column if column in {"floats", "GGUF", "8 bits"} else f"`{column}`" for column in columns]
        page += f"\n## {heading}\n| family | {' | '.join(shown)} |\n|---{'|---' * len(columns)}|\n"
        for entry in FAMILIES:
            name = name_of(entry)
            if entry in measured:
                figures: Sequence[str] = [_figure(measured[entry][column]) for column in columns]
            else:
                figures = [kept.get((name, column), "?") for column in columns]
            page += f"| {name} | {' | '.join(figures)} |\n"
    return page


def _figure(value: float) -> str:
    if math.isnan(value):
        return "–"
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def main(entries: Sequence[str]) -> None:
    """Entry of the process."""
    measured = {}
    for entry in entries or list(FAMILIES):
        measured[entry] = measure(entry)
        print(entry, {column: _figure(value) for column, value in measured[entry].items()}, flush=True)
    PAGE.write_text(written(PAGE.read_text("utf-8"), measured), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
