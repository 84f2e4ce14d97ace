"""Cuts and bit flips of the GGUF files in a folder: each is refused with a ModelError, or packed and computed.

    python -m tests.models.damage_odd FOLDER FLIPS

prints how many were tried and how many opened; anything else than a ModelError ends this process.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from edged.core.errors import ModelError
from edged.engine.kernels.library import KernelError
from edged.models.packing.pack import pack_path
from edged.models.tokenizer.texts import read_texts
from tests.native.fuzz import compute

CUTS = (0.01, 0.1, 0.5, 0.999)
HEAD = 16_000  # most flips hit metadata and tensors' places, not weights


def damaged(data: bytes, flips: int, rng: random.Random) -> Iterator[bytes]:
    """Each cut, then each flip."""
    for share in CUTS:
        yield data[: int(len(data) * share)]
    for _ in range(flips):
        bent = bytearray(data)
        at = rng.randrange(min(HEAD, len(bent)) if rng.random() < 0.8 else len(bent))
        bent[at] ^= 1 << rng.randrange(8)
        yield bytes(bent)


def main(folder: Path, flips: int) -> None:
    """Entry of the process."""
    rng = random.Random(1)
    paths = sorted(folder.glob("*.gguf"))
    tried = opened = 0
    for path in paths:
        whole = path.read_bytes()
        for data in damaged(whole, -(-flips // len(paths)), rng):
            tried += 1
            path.write_bytes(data)
            try:
                read_texts(path).codec.encode("the capital of Japan, 日本 <x>", specials=True)
                pack_path(path, folder / "packed")
                compute(folder / "packed")
                opened += 1
            except (ModelError, KernelError) as error:
                if "\n" in str(error).strip():
                    raise
            shutil.rmtree(folder / "packed", ignore_errors=True)
        path.write_bytes(whole)
    print(tried, opened)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
