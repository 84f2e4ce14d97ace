"""Opens a packed model with the native engine: admits its memory and starts the kernels."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.errors import ModelError
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import BLOCK, NativeModel, block_bytes, state_bytes
from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import KernelError, load_library
from edged.engine.memory import MAX_SLOTS, admit
from edged.models.formats.packed import PackedModel


def kernels_here() -> str:
    """The name of the kernels that would run here. Raises ModelError `unsupported` where there are none."""
    try:
        name = load_library().kernels()
    except (BuildError, OSError) as error:
        raise ModelError("unsupported", f"The native engine is not built here: {error}.") from error
    if name is None:
        raise ModelError("unsupported", "The native engine has no kernels for this processor.")
    return name


def open_native(
    packed: PackedModel,
    context: int | None,
    threads: int | None,
    available_bytes: Callable[[], int],
    kernels: str = "auto",
    slots: int = MAX_SLOTS,
) -> NativeBackend:
    """Loads a packed model with as many slots as fit, at most `slots`.

    Raises ModelError `unsupported`, `bad_model` or `no_memory`.
    """
    kernels_here()
    shape = packed.manifest.shape
    context = min(context or shape.default_context, shape.context)
    per_slot = -(-context // BLOCK)
    # Each slot has a recurrent state and writes the next; one more is for Model.logits.
    state = state_bytes(packed)
    cache = per_slot * block_bytes(packed) + 2 * state
    budget = admit(packed.weights_bytes + state, cache, available_bytes(), slots)
    states = 2 * budget.slots + 1 if state else 0
    # One cache more than the slots, for Model.logits beside them, where that fits as well. The pool fills with what
    # earlier sequences left, so all of it counts.
    free = budget.cache_bytes - 2 * budget.slots * state
    blocks = min(per_slot * (budget.slots + 1), free // block_bytes(packed))
    try:
        model = NativeModel(
            packed, context=context, blocks=blocks, states=states, threads=threads or 0, kernels=kernels
        )
    except KernelError as error:
        code = "no_memory" if "memory" in str(error) else "bad_model"
        raise ModelError(code, f"The model {packed.manifest.name} cannot be run: {error}.") from error
    return NativeBackend(model, budget.slots)
