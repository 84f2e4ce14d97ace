"""Metadata of a GGUF file's architecture, each value of the wanted kind, and what of it nothing has read."""

from __future__ import annotations

import math
from typing import Any, Final

from edged.core.errors import ModelError, NoBackend
from edged.models.formats.gguf import GgufFile

# What describes the file or its training, or repeats what other figures and the tensors say.
_DESCRIPTIONS: Final = frozenset({
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal", "use_parallel_residual",
})  # fmt: skip


class Figures:
    """Metadata below `ARCHITECTURE.`; ModelError `bad_model` for values of another kind than is wanted."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture
        self._read: set[str] = set()

    def whole(self, key: str, default: int | None = None) -> int:
        """A number from 1 to 10,000,000. A list with one value for each layer counts where all are equal; ModelError
        `unsupported` where they differ."""
        value = self._get(key, default)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                raise NoBackend(
                    f"The layers of {self._file.path.name} differ in {self._architecture}.{key}, "
                    "which edged does not run; use another model."
                )
            value = value[0]
        if not isinstance(value, int) or not 1 <= value <= 10_000_000:
            raise self._wrong(key, value)
        return value

    def each(self, key: str, layers: int) -> list[int]:
        """A number of at least 0 for each layer: a list of them, or one for all."""
        value = self._get(key, None)
        values = value if isinstance(value, list) else [value] * layers
        if len(values) != layers or not all(isinstance(one, int) and 0 <= one <= 10_000_000 for one in values):
            raise self._wrong(key, value)
        return values

    def skip(self, key: str) -> None:
        """What does not matter to the language model."""
        self._read.add(key)

    def count(self, key: str) -> int:
        """A number from 0 to 10,000,000; 0 where it is missing."""
        value = self._get(key, 0)
        if not isinstance(value, int) or not 0 <= value <= 10_000_000:
            raise self._wrong(key, value)
        return int(value)

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

    def flags(self, key: str) -> list[bool] | None:
        """A list of truth values; None where it is missing. A number counts for its pattern's length, see `length`."""
        value = self._get(key, None)
        if value is None or isinstance(value, int):
            return None
        if not isinstance(value, list) or not all(isinstance(one, (bool, int)) for one in value):
            raise self._wrong(key, value)
        return [bool(one) for one in value]

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return f"{self._architecture}.{key}" in self._file.metadata

    def check_all_read(self) -> None:
        """Raises ModelError `unsupported` for a figure that nothing has read and that is not 0, false or empty: a model
        computed without it would be another one."""
        prefix = f"{self._architecture}."
        for key, value in self._file.metadata.items():
            short = key.removeprefix(prefix)
            if key.startswith(prefix) and short not in self._read | _DESCRIPTIONS and value not in (0, "", [], "none"):
                raise NoBackend(
                    f"edged does not apply {key} = {str(value)[:60]} of {self._file.path.name}; use another model.",
                )

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self._file.get(f"{self._architecture}.{key}", default)

    def _wrong(self, key: str, value: Any) -> ModelError:
        shown = repr(value)[:60]
        name = self._file.path.name
        return ModelError("bad_model", f"{name} gives {shown} for {self._architecture}.{key}; fetch it again.")
