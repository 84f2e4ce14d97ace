"""`edged pack`: make a packed folder, which the native engine maps into memory unchanged."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edged.commands.configured import configured, store_folder
from edged.commands.progress import StepLine
from edged.core.errors import BadValue, EdgedError
from edged.models.formats.packed import open_packed
from edged.models.packing.pack import open_source, pack, pack_shape
from edged.models.store.locate import locate
from edged.models.store.packed_cache import CHECKPOINT_BITS
from edged.models.store.store import Store


def run(arguments: argparse.Namespace) -> int:
    """Pack a model or a known shape, and print what was made. Raises EdgedError."""
    models = store_folder(configured(arguments)[1])
    wanted = 1 if arguments.shape else 2
    if len(arguments.paths) != wanted:
        raise BadValue("edged pack", "takes SOURCE DEST, or --shape NAME DEST")
    if arguments.tokenizer and not arguments.shape:
        raise BadValue("--tokenizer", "goes with --shape; a model has its own tokenizer")
    if arguments.scale_only and arguments.bits == 8:
        raise BadValue("--scale-only", "goes with --bits 4: 8 bits have no minimum")
    destination = Path(arguments.paths[-1])
    if arguments.shape:
        bits, group = arguments.bits or 4, arguments.group or 32
        pack_shape(
            arguments.shape,
            destination,
            bits=bits,
            group=group,
            head_bits=arguments.head_bits,
            texts=arguments.tokenizer,
            progress=StepLine(),
        )
    else:
        _pack(arguments, destination, models)
    packed = open_packed(destination)
    about = {
        "path": str(destination),
        "name": packed.manifest.name,
        "quantization": packed.manifest.quantization,
        "size_bytes": packed.weights_bytes,
        "digest": locate(str(destination), None, Store(models)).digest,
    }
    if arguments.json:
        print(json.dumps(about, ensure_ascii=False))
    else:
        print(f"{destination} holds {about['name']} as {about['quantization']}, {packed.weights_bytes / 1e6:.0f} MB")
    return 0


def _pack(arguments: argparse.Namespace, destination: Path, models: Path) -> None:
    found = locate(arguments.paths[0], None, Store(models))
    if found.format == "packed":
        raise EdgedError(f"{found.path} is packed already; give the model from which it was made")
    bits = arguments.bits or (CHECKPOINT_BITS if found.format == "checkpoint" else None)
    if arguments.group and bits is None:
        raise BadValue("--group", "needs --bits; without it the weights stay as they are in the file")
    if arguments.head_bits and bits is None:
        raise BadValue("--head-bits", "needs --bits; without it the weights stay as they are in the file")
    if arguments.scale_only and bits is None:
        raise BadValue("--scale-only", "needs --bits 4; without it the weights stay as they are in the file")
    pack(
        open_source(found.path),
        destination,
        bits=bits,
        group=arguments.group or 32,
        head_bits=arguments.head_bits,
        minimum=not arguments.scale_only,
        source_digest=found.digest,
        progress=StepLine(),
    )
