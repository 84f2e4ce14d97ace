"""Models that llama.cpp's `gguf-split` wrote as several files, `NAME-00001-of-00003.gguf` and on.

The first one has the metadata; each has some of the tensors and says which part it is (`split.no`, from 0), of how many
(`split.count`), and how many tensors there are in all (`split.tensors.count`).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edged.core.errors import ModelError

if TYPE_CHECKING:
    from edged.models.formats.gguf import GgufFile, GgufTensor

_NAME: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
MAX_PARTS: Final = 1_000


def part_count(name: str) -> int:
    """The number of files that a file of this name says the model has; 1 for one that is whole."""
    match = _NAME.fullmatch(name)
    return max(1, int(match[3])) if match else 1


def part_paths(path: Path) -> list[Path]:
    """All files of a model, the first one first; `path` alone where it is whole. Raises ModelError `missing`."""
    match, count = _NAME.fullmatch(path.name), part_count(path.name)
    if match is None or count == 1 or count > MAX_PARTS or not 1 <= int(match[2]) <= count:
        return [path]
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if gone := [other.name for other in paths if not other.is_file()]:
        names = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        raise ModelError(
            "missing",
            f"{path.name} is a part of a model in {count} files; {names} must lie beside it: fetch what is missing.",
        )
    return paths


def join_parts(
    first: GgufFile, others: Sequence[GgufFile]
) -> tuple[dict[str, GgufTensor], dict[str, Any], list[mmap.mmap]]:
    """The tensors of all parts, the metadata without that of the split, and the data of `others`.

    Raises ModelError `bad_model` for files that are not parts of the same model.
    """
    count = first.get("split.count", 1)
    if count != 1 + len(others) and not (count == 0 and not others):
        raise ModelError(
            "bad_model",
            f"{first.path.name} says that its model is split into {str(count)[:20]} files, but its name does not; "
            "give all of them the names that they had (NAME-00001-of-00003.gguf).",
        )
    tensors = dict(first.tensors)
    for number, other in enumerate(others, start=1):
        facts = (other.get("split.no"), other.get("split.count"))
        if facts != (number, count) or tensors.keys() & other.tensors.keys():
            raise ModelError(
                "bad_model", f"{other.path.name} is not part {number + 1} of the same model; fetch all of them again."
            )
        tensors |= {name: replace(tensor, part=number) for name, tensor in other.tensors.items()}
    if others and first.get("split.tensors.count", len(tensors)) != len(tensors):
        raise ModelError(
            "bad_model",
            f"The parts of {first.path.name} do not have all its tensors; fetch all of them again.",
        )
    metadata = {key: value for key, value in first.metadata.items() if not key.startswith("split.")}
    return tensors, metadata, [part for other in others for part in other.parts]
