"""Opens a model with the native engine: packs it when it is first used, admits its memory, maps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import BLOCK, NativeModel, block_bytes
from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import KernelError, load_library
from edged.engine.memory import admit
from edged.models.pack import open_source, pack
from edged.models.packed import FORMAT, PackedModel, is_packed, open_packed

CHECKPOINT_BITS: Final = 4  # what `bits: auto` makes of a checkpoint


def available() -> str | None:
    """The name of the kernels that would run here; None where there are none and no compiler made any."""
    try:
        return load_library().kernels()
    except (BuildError, OSError):
        return None


def packed_folder(
    path: Path, digest: str, bits: str | int, cache: Path, progress: Callable[[str], None] = lambda _: None
) -> PackedModel:
    """The packed folder of a verified GGUF file or checkpoint: itself, or one made in `cache`, named by digest and
    bits.

    A folder that is damaged is made again. Raises ModelError: `unsupported` where the torch backend should take the
    model.
    """
    if is_packed(path):
        return open_packed(path)
    folder = cache / f"{digest.removeprefix('sha256:')[:32]}-{bits}-v{FORMAT}"
    if is_packed(folder):
        try:
            return open_packed(folder)
        except ModelError:
            _remove(folder)
    checkpoint = path.is_dir()
    if not checkpoint and bits != "auto":
        raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
    wanted = (CHECKPOINT_BITS if bits == "auto" else int(bits)) if checkpoint else None
    pack(open_source(path), folder, bits=wanted, source_digest=digest, progress=progress)
    return open_packed(folder)


def open_native(
    packed: PackedModel,
    context: int | None,
    threads: int | None,
    available_bytes: Callable[[], int],
    kernels: str = "auto",
) -> NativeBackend:
    """Loads a packed model with as many slots as fit. Raises ModelError `unsupported`, `bad_model` or `no_memory`."""
    try:
        library = load_library()
    except (BuildError, OSError) as error:
        raise ModelError(
            "unsupported", f"The native engine is not built here: {error}; use the torch backend."
        ) from error
    trained = packed.manifest.shape.context
    context = min(context or trained, trained)
    per_slot = -(-context // BLOCK)
    room = admit(packed.weights_bytes, per_slot * block_bytes(packed), available_bytes())
    # One cache more than the slots, for Model.logits beside them.
    blocks = per_slot * (room.slots + 1)
    try:
        model = NativeModel(
            packed, context=context, blocks=blocks, threads=threads or 0, kernels=kernels, library=library
        )
    except KernelError as error:
        raise ModelError("bad_model", f"The model {packed.manifest.name} cannot be run: {error}.") from error
    return NativeBackend(model, room.slots)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
