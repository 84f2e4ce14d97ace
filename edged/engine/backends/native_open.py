"""Opens a packed model with the native engine: admits its memory and starts the kernels."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.errors import ModelError
from edged.engine.backends.base import MAX_SLICE
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import BLOCK, NativeModel
from edged.engine.kernels.build import BuildError
from edged.engine.kernels.library import KernelError, load_library
from edged.engine.memory import MAX_SLOTS, admit
from edged.models.formats.packed import PackedModel
from edged.models.formats.shape import Shape


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
    one = blocks_of_context(context, shape.window)
    one_bytes = cache_bytes(shape, one)
    # Each slot has a recurrent state and writes the next; one more is for Model.logits.
    state = state_bytes(shape)
    budget = admit(packed.weights_bytes + state, one_bytes + 2 * state, available_bytes(), slots)
    states = 2 * budget.slots + 1 if state else 0
    # One cache more than the slots, for Model.logits beside them, where that fits as well. The pools fill with what
    # earlier sequences left, so all of them counts.
    most = min(one_bytes * (budget.slots + 1), budget.cache_bytes - 2 * budget.slots * state)
    blocks, window_blocks = (count * most // one_bytes for count in one)
    try:
        model = NativeModel(
            packed, context=context, blocks=blocks, window_blocks=window_blocks, states=states, threads=threads or 0,
            kernels=kernels,
        )  # fmt: skip
    except KernelError as error:
        code = "no_memory" if "memory" in str(error) else "bad_model"
        raise ModelError(code, f"The model {packed.manifest.name} cannot be run: {error}.") from error
    return NativeBackend(model, budget.slots)


def blocks_of_context(context: int, window: int) -> tuple[int, int]:
    """How many blocks a sequence of `context` tokens takes: of layers that see all tokens, and of those with a window.

    While a slice is computed, a window's blocks are those that its first token sees and those of the slice.
    """
    blocks = -(-context // BLOCK)
    seen = window - 1 + MAX_SLICE
    return blocks, min(blocks, (seen + BLOCK - 2) // BLOCK + 1)


def cache_bytes(shape: Shape, blocks: tuple[int, int]) -> int:
    """What so many blocks take, of layers that see all tokens and of those with a window: keys and values, float16."""
    windows = shape.cache_windows
    windowed = sum(window > 0 for window in windows)
    of_layer = 2 * BLOCK * shape.cache_values // len(windows)
    return of_layer * ((len(windows) - windowed) * blocks[0] + windowed * blocks[1])


def state_bytes(shape: Shape) -> int:
    """What the recurrent state of one sequence takes, float32; 0 where the model has none."""
    return 4 * shape.state_values
