"""Cuts and bit flips of the GGUF files in a folder: each is refused with a ModelError, or packed and computed.

    python -m tests.models.damage_odd FOLDER FLIPS [SEED]

FLIPS: over all files together. Prints how many were tried and how many were computed. Anything else than a ModelError,
and an attempt of more than a minute, ends this process; the damaged file then stays in the folder.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edged.core.errors import ModelError
from edged.engine.kernels.library import KernelError
from edged.models.formats.gguf import open_gguf
from edged.models.packing.pack import pack_path
from edged.models.tokenizer.texts import read_texts
from tests.native.fuzz import compute

CUTS = (0.01, 0.1, 0.5, 0.999)
SECONDS = 60  # of one attempt; the slowest took 0.3, under sanitizers


def head_size(path: Path) -> int:
    """Bytes of the metadata and the tensors' places; most flips hit these, not weights."""
    try:
        tensors = open_gguf(path).tensors.values()
    except ModelError:
        return 16_000
    return min((tensor.offset for tensor in tensors if not tensor.part), default=16_000)


def damaged(data: bytes, flips: int, head: int, rng: random.Random) -> Iterator[bytes]:
    """Each cut, then each flip."""
    for share in CUTS:
        yield data[: int(len(data) * share)]
    for _ in range(flips):
        bent = bytearray(data)
        at = rng.randrange(min(head, len(bent)) if rng.random() < 0.8 else len(bent))
        bent[at] ^= 1 << rng.randrange(8)
        yield bytes(bent)


def works(step: Callable[[], object]) -> bool:
    """Whether a step ends without a ModelError, whose message must be one line."""
    try:
        step()
    except (ModelError, KernelError) as error:
        if "\n" in str(error).strip():
            raise
        return False
    return True


def main(folder: Path, flips: int, seed: int) -> None:
    """Entry of the process."""
    rng = random.Random(seed)
    paths = sorted(folder.glob("*.gguf"))
    packed = folder / "packed"
    tried = computed = 0
    for path in paths:
        whole = path.read_bytes()
        for data in damaged(whole, -(-flips // len(paths)), head_size(path), rng):
            path.write_bytes(data)
            signal.alarm(SECONDS)
            works(lambda path=path: read_texts(path).codec.encode("the capital of Japan, 日本 <x>", specials=True))
            tried += 1
            computed += works(lambda path=path: pack_path(path, packed)) and works(lambda: compute(packed))
            shutil.rmtree(packed, ignore_errors=True)
        path.write_bytes(whole)
    print(tried, computed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
