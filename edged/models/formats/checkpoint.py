"""Checkpoint folders as Hugging Face writes them: config.json, tokenizer.json and safetensors. Nothing in one is run.

The safetensors layout: 8 bytes length (little endian), a JSON header of that length, then the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.tokenizer.sources import read_json

MAX_HEADER: Final = 100_000_000
MAX_TENSORS: Final = 100_000
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_folder(folder: Path) -> None:
    """Refuses what would run code or cannot be loaded: pickles alone, `auto_map`, broken headers.

    Raises ModelError `missing`, `unsupported` or `bad_model`.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            "bad_model",
            f"{folder} has no config.json, so it is not a checkpoint folder; nor is it a packed one, which has "
            "manifest.json and model.safetensors. Fetch or pack the model again.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if read_json(folder / name).get("auto_map"):
            raise ModelError(
                "unsupported",
                f"{folder / name} names code of its own (auto_map), which edged never runs; use another model.",
            )
    if not list(folder.glob("*.safetensors")):
        pickled = any(path.suffix in _PICKLED for path in folder.iterdir())
        raise ModelError(
            "unsupported" if pickled else "bad_model",
            f"{folder} has no safetensors file"
            + (
                ", only pickled weights, which are never loaded; convert them to safetensors."
                if pickled
                else "; fetch it again."
            ),
        )
    read_headers(folder)


def read_headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in a folder's safetensors files. Raises ModelError `bad_model`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header = _header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    shapes[name] = tuple(int(size) for size in entry["shape"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                "bad_model", f"{path} is not a whole safetensors file ({error}); fetch it again."
            ) from error
        if len(shapes) > MAX_TENSORS:
            raise ModelError("bad_model", f"{folder} has more than {MAX_TENSORS:,} tensors; that is not a model.")
    return shapes


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length:,} bytes does not fit a file of {size:,}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if any(not isinstance(end, int) or end > size - 8 - length for end in ends):
        raise ValueError("it is cut short")
    return header


def chat_template(folder: Path) -> str | dict[str, str] | None:
    """The chat template: chat_template.jinja, or that in tokenizer_config.json or chat_template.json.

    Of several, each by its name; those in `additional_chat_templates` are named by their files.
    """
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _read_text(path) for name, path in paths.items() if path.is_file()}
    if "default" in found:
        return found if len(found) > 1 else found["default"]
    for file in ("tokenizer_config.json", "chat_template.json"):
        template = read_json(folder / file).get("chat_template")
        if isinstance(template, list):
            named = [(entry.get("name"), entry.get("template")) for entry in template if isinstance(entry, dict)]
            template = {name: text for name, text in named if isinstance(name, str) and isinstance(text, str)}
        if isinstance(template, str | dict) and template:
            return template
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("bad_model", f"{path} cannot be read ({error}); fetch the model again.") from error
