"""A model's own sampling: what its maker or the catalog gives for prompts that do not set it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import GGUF_TOKENIZER
from edged.models.store.catalog import catalog
from edged.models.tokenizer.sources import read_json

# Lowest and highest value that a prompt may give.
_RANGES: Final = {
    "temperature": (0.0, 5.0),
    "top_k": (0, 2**53 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.5, 2.0),
}
# Keys of GGUF metadata, from the constants of llama.cpp's gguf package.
_GGUF: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def own_sampling(name: str, digest: str, path: Path) -> dict[str, float]:
    """Sampling keys and values of a model (a GGUF file or a folder): those of its files, over them the catalog's.

    Values that a prompt could not have are left out.
    """
    entry = next((entry for entry in catalog().values() if entry.name == name or entry.digest == digest != ""), None)
    found: dict[str, Any] = {}
    with suppress(ModelError):  # reported when the model is opened
        found = _of_folder(path) if path.is_dir() else _of_file(path)
    return _valid({**found, **(entry.sampling if entry else {})})


def _of_file(path: Path) -> dict[str, Any]:
    file = open_gguf(path)
    return {key: file.get(name) for key, name in _GGUF.items()}


def _of_folder(folder: Path) -> dict[str, Any]:
    """Of generation_config.json, where `do_sample: false` is greedy; of a packed GGUF file, of its metadata."""
    if (folder / GGUF_TOKENIZER).is_file():
        return _of_file(folder / GGUF_TOKENIZER)
    config = read_json(folder / "generation_config.json")
    found = {key: config.get(key) for key in _RANGES}
    return {**found, "temperature": 0.0} if config.get("do_sample") is False else found


def _valid(found: Mapping[str, Any]) -> dict[str, float]:
    return {key: int(value) if key == "top_k" else float(value) for key, value in found.items() if _fits(key, value)}


def _fits(key: str, value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    low, high = _RANGES[key]
    return low <= value <= high and (key != "top_k" or value == int(value))
