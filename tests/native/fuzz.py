"""Damaged models for a bounded time: each is refused with a ModelError, or computed; anything else ends this process.

    python -m tests.native.fuzz gguf|packed|checkpoint FOLDER SECONDS [SEED]

prints how many were tried and how many opened.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edged.core.errors import ModelError
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.kernels.library import KernelError, load_library
from edged.engine.table_splitter import codec_from_tables
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import MANIFEST, WEIGHTS, open_packed
from edged.models.packing.pack import pack_path
from edged.models.tokenizer.sources import codec_from_gguf
from edged.models.tokenizer.tables import TABLES, open_tables
from tests.tiny import make_checkpoint, make_gguf

NUMBERS = (0, 1, 2, 7, 31, 127, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def damaged(data: bytes, rng: random.Random, head: int) -> bytes:
    """Some bytes flipped, a number put in, or a piece cut out; mostly within the first `head` bytes."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not made:
            break
        at = rng.randrange(min(head, len(made)) if rng.random() < 0.8 else len(made))
        kind = rng.randrange(4)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
        elif kind == 2:
            del made[at : at + rng.randint(1, 64)]
        else:
            del made[rng.randrange(len(made)) :]
    return bytes(made)


def compute(folder: Path) -> None:
    """Opens a packed folder, makes ids of a text and computes a step."""
    if tables := open_tables(folder):
        codec_from_tables(tables, load_library()).encode("the capital of Japan, 日本 <x>", specials=True)
    with NativeModel(open_packed(folder), context=64, blocks=4, threads=2) as model:
        model.step([Part([1, 2, 3], 0, [0], next_state=0)])


def gguf(folder: Path, rng: random.Random) -> Callable[[], None]:
    """A GGUF file: read, its tokenizer made, packed, computed."""
    whole = make_gguf(folder / "whole.gguf", context=64).read_bytes()
    path, packed = folder / "damaged.gguf", folder / "packed"

    def attempt() -> None:
        path.write_bytes(damaged(whole, rng, 12_000))
        codec_from_gguf(open_gguf(path))
        pack_path(path, packed)
        compute(packed)

    return attempt


def packed(folder: Path, rng: random.Random) -> Callable[[], None]:
    """A packed folder whose digests nobody checks: the last line of defence."""
    good, bad = folder / "good", folder / "packed"
    pack_path(make_gguf(folder / "whole.gguf", context=64), good)

    def attempt() -> None:
        shutil.copytree(good, bad)
        name, head = rng.choice([(MANIFEST, 4000), (WEIGHTS, 2500), (TABLES, 4000)])
        (bad / name).write_bytes(damaged((good / name).read_bytes(), rng, head))
        compute(bad)

    return attempt


def checkpoint(folder: Path, rng: random.Random) -> Callable[[], None]:
    """A checkpoint folder: its config and its safetensors file."""
    good, bad = make_checkpoint(folder / "good"), folder / "bad"

    def attempt() -> None:
        shutil.copytree(good, bad)
        name, head = rng.choice([("config.json", 600), ("model.safetensors", 2500)])
        (bad / name).write_bytes(damaged((good / name).read_bytes(), rng, head))
        pack_path(bad, folder / "packed", bits=4)
        compute(folder / "packed")

    return attempt


def main(what: str, folder: Path, seconds: float, seed: int) -> None:
    """Entry of the process."""
    rng = random.Random(seed)
    attempt = {"gguf": gguf, "packed": packed, "checkpoint": checkpoint}[what](folder, rng)
    tried = opened = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tried += 1
        try:
            attempt()
            opened += 1
        except (ModelError, KernelError):
            pass
        finally:
            for name in ("packed", "bad"):
                shutil.rmtree(folder / name, ignore_errors=True)
    print(tried, opened)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
