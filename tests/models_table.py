"""Writes `docs/reference/models.md`: each family, type and backend with its largest difference from transformers.

Run as `python -m tests.models_table` (about 3 minutes; needs torch, transformers and gguf). The models are tiny and
random; the reference has the very weights that the file stands for, so rounding a model is not counted.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from edged.engine.backends.base import Slice
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.backends.torch_backend import TorchBackend
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import open_packed
from edged.models.packing.pack import pack_path
from edged.models.store.locate import LocatedModel
from tests.native.families import FAMILIES, reference, write_gguf
from tests.native.helpers import tiny_checkpoint

PAGE: Final = Path(__file__).parents[1] / "docs/reference/models.md"
TYPES: Final = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")  # those that the `gguf` package can write
ROUNDED: Final = ("Q8_0", "Q4_0", "Q4_1")  # the others are floats
SIZES: Final[dict[str, Any]] = {"intermediate_size": 96, "vocab_size": 224}  # whole blocks of 32
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
}
HEAD: Final = """# Models

What each backend computes, and how far its logits are from those of transformers in float32.

This page is written by `python -m tests.models_table`.
Each figure is the largest difference over a prompt of 300 tokens, as a part of the largest logit.
The models are tiny and random, with windows and original contexts of 40 to 100 tokens; the
reference has the weights that the file stands for.

- *Floats* are checkpoint folders and GGUF files in F32, F16 and BF16, unrounded.
- *8 bits* is a checkpoint folder in torch, rounded as it is at load, over 90 tokens; the figure is
  the effect of rounding.
- The native engine keeps keys and values in float16.
  With float weights that is nearly all of its difference.
- Weights of the types with `Q` meet activations of 8 bits in the native engine; other types meet
  the same activations.
- The torch backend widens GGUF files to float32 or bfloat16; the figure is that of float32.
- In a mixture of experts, rounding decides which of two nearly equal experts computes a token.
  The routers of the tiny models weigh the last expert of a token little, so that the figures show
  the rest.
- A file with a tensor that is not used, or with metadata that is not applied, is refused by name in
  both backends.
- A rotary scaling that depends on the length (LongRoPE) is the one for the context that the model
  is loaded with: up to the context of the first training the short one, which is the default.

"""


def rows() -> Iterator[tuple[str, str, str, float, float]]:
    """The entry of the tests, its family, the type, and the largest differences of the native engine and of torch."""
    tokens = np.random.default_rng(1).integers(0, 224, 300).tolist()
    for entry, (family, changes) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = tiny_checkpoint(folder / "checkpoint", family, **{**SIZES, **changes})
            expected = reference(model, tokens)
            yield (
                entry, family, "checkpoint", _relative(_native(folder / "checkpoint", tokens), expected),
                _relative(_hub(folder / "checkpoint", tokens[:90]), reference(model, tokens[:90])),
            )  # fmt: skip
            own = tokens[:40] if entry == "mistral" else tokens  # GGUF files of Mistral do not say their window
            paths = {kind: write_gguf(model, folder / f"{kind}.gguf", kind) for kind in TYPES}
            for kind, path in paths.items():
                expected = reference(_rounded(model, kind), own)
                native, of_torch = _native(path, own), _torch(path, own)
                yield entry, family, kind, _relative(native, expected), _relative(of_torch, expected)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def _rounded(model: Any, kind: str) -> Any:
    """The model with its matrices as a file of this type stands for them."""
    import torch
    from gguf import GGMLQuantizationType, dequantize, quantize

    number = GGMLQuantizationType[kind]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if parameter.ndim > 1 and not name.endswith(("router.weight", "mlp.gate.weight")):
                parameter.copy_(torch.from_numpy(dequantize(quantize(parameter.numpy(), number), number)))
    return changed


def _native(source: Path, tokens: list[int]) -> np.ndarray:
    packed = source.with_name(f"{source.name}.packed")
    pack_path(source, packed)
    with NativeModel(open_packed(packed), context=512, blocks=16, threads=1) as model:
        return model.step([Part(tokens, 0, range(16), wanted=len(tokens))])


def _torch(path: Path, tokens: list[int]) -> np.ndarray:
    from edged.engine.backends import torch_gguf

    file = open_gguf(path)
    shape = torch_gguf.written_out(file)
    assert shape is not None
    return _all_logits(torch_gguf.open_llama(file, shape, 512, "cpu", _quiet, lambda: 1 << 40, exact=True), tokens)


def _hub(folder: Path, tokens: list[int]) -> np.ndarray:
    from edged.engine.backends import torch_hub

    located = LocatedModel(folder.name, folder, "", "checkpoint", 0)
    return _all_logits(torch_hub.open_hub(located, None, "cpu", _quiet, lambda: 1 << 40, exact=False), tokens)


def _quiet(_: str) -> None:
    """Progress that nobody reads."""


def _all_logits(backend: TorchBackend, tokens: list[int]) -> np.ndarray:
    slot, rows = backend.open(), []
    for at in range(0, len(tokens), 256):
        logits = backend.run([Slice(slot, at, tokens[at : at + 256])], every=True)[0]
        assert isinstance(logits, np.ndarray)
        rows.append(logits)
    return np.concatenate(rows)


def table(measured: Iterable[tuple[str, str, str, float, float]]) -> str:
    """One line for each entry: native with each type (floats together), torch with GGUF files and checkpoints."""
    lines = ["| family | native: floats | " + " | ".join(f"`{kind}`" for kind in ROUNDED) + " | torch: GGUF | 8 bits |"]
    lines.append("|---" * (4 + len(ROUNDED)) + "|")
    for entry, group in groupby(measured, key=lambda row: row[0]):
        found = list(group)
        family, native = found[0][1], {kind: figure for _, _, kind, figure, _ in found}
        floats = max(figure for kind, figure in native.items() if kind not in ROUNDED)
        of_torch = max(figure for _, _, kind, _, figure in found if kind != "checkpoint")
        rounded = next(figure for _, _, kind, _, figure in found if kind == "checkpoint")
        what = PEOPLE[family] + (f": {entry.partition(', ')[2] or entry}" if entry != family else "")
        figures = (floats, *(native[kind] for kind in ROUNDED), of_torch, rounded)
        lines.append(f"| {what} | " + " | ".join(f"{figure:.0e}" for figure in figures) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(HEAD + table(rows()), "utf-8")
