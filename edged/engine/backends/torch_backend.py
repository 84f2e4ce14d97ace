"""The torch backend: slots of key/value caches over a network, and the choice of network for a model on disk.

Everything that imports torch or transformers is here and below. GGUF files of the Llama family run in `torch_llama`;
other GGUF files and checkpoint folders run in transformers' classes (`torch_hub`).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from edged.core.errors import ModelError
from edged.engine.backends.base import MAX_SLICE, ComputeError, Decoding, Logits, Slice
from edged.engine.backends.torch_gguf import read_network
from edged.engine.memory import admit
from edged.models.formats.gguf import GgufFile, open_gguf
from edged.models.formats.gguf_shape import shape_from_gguf, sliding_window
from edged.models.formats.shape import Shape
from edged.models.store.locate import LocatedModel

SMALL: Final = 64_000_000  # bytes of float32 weights that caches hold: bfloat16 would gain nothing there


class Network(Protocol):
    """What the backend needs of a network."""

    def new_cache(self) -> Any: ...
    def forward(self, cache: Any, tokens: Any, start: int, every: bool) -> Any: ...


class TorchBackend:
    """Sequences one after the other, each in its own cache, so that a text never depends on its company."""

    name = "torch"
    drafts = 0

    def __init__(
        self,
        network: Network,
        quantization: str,
        vocabulary: int,
        context: int,
        slots: int,
        weights_bytes: int,
        device: str,
    ) -> None:
        self.quantization = quantization
        self.vocabulary = vocabulary
        self.context = context
        self.slots = slots
        self.weights_bytes = weights_bytes
        self._network = network
        self._device = device
        self._caches: dict[int, Any] = {}
        self._next = 0

    def open(self) -> int:
        self._next += 1
        self._caches[self._next] = self._network.new_cache()
        return self._next

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:  # noqa: ARG002 nothing is kept here
        return 0

    def close(self, slot: int) -> None:
        del self._caches[slot]

    def keep(self, slot: int, token: int) -> None:
        raise ComputeError(f"slot {slot} has no draft {token}: the torch backend takes none")

    def decode(
        self,
        sequences: Sequence[Decoding],  # noqa: ARG002 one step a call here
        steps: int,  # noqa: ARG002
        stops: array[int],  # noqa: ARG002
        hurry: array[int],  # noqa: ARG002
    ) -> list[list[int]]:
        return []

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        return [self._run(item, every) for item in slices]

    def _run(self, item: Slice, every: bool) -> Logits | ComputeError:
        if not 1 <= len(item.tokens) <= MAX_SLICE or item.start + len(item.tokens) > self.context:
            return ComputeError(f"{len(item.tokens)} tokens at {item.start} do not fit a context of {self.context}")
        if min(item.tokens) < 0 or max(item.tokens) >= self.vocabulary:
            return ComputeError(f"a token id is outside 0…{self.vocabulary - 1}")
        # oneDNN multiplies a single bfloat16 row several times slower than torch itself does.
        torch.backends.mkldnn.enabled = len(item.tokens) > 1
        try:
            with torch.no_grad():  # not inference_mode, under which some quantized tensors fail
                tokens = torch.tensor(item.tokens, dtype=torch.long, device=self._device)
                logits = self._network.forward(self._caches[item.slot], tokens, item.start, every)
                result: Logits = logits.float().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            return ComputeError(str(error).split("\n", 1)[0])
        return result


def open_torch(
    model: LocatedModel,
    bits: str | int,
    context: int | None,
    threads: int | None,
    progress: Callable[[str], None],
    available: Callable[[], int],
    exact: bool = False,
) -> TorchBackend:
    """Loads a model; `exact` keeps a GGUF file of the Llama family in float32.

    Raises ModelError `unsupported`, `bad_model` or `no_memory` (before anything large is read).
    """
    if bits in {4, "4"}:
        raise ModelError(
            "unsupported", "4 bits are for the native engine; set model.bits to 8 or auto with the torch backend."
        )
    _use_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        available = _cuda_available
    if model.format == "gguf":
        if bits != "auto":
            raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
        file = open_gguf(model.path)
        backend = _llama(file, context, device, progress, available, exact)
        if backend is not None:
            return backend
    from edged.engine.backends.torch_hub import open_hub

    return open_hub(model, bits, context, device, progress, available)


def _llama(
    file: GgufFile,
    context: int | None,
    device: str,
    progress: Callable[[str], None],
    available: Callable[[], int],
    exact: bool,
) -> TorchBackend | None:
    shape = _written_out(file, context)
    if shape is None:
        return None
    context = min(context or shape.context, shape.context)
    count = file.weight_count()
    dtype = torch.float32 if exact or 4 * count <= SMALL else torch.bfloat16
    width = dtype.itemsize
    room = admit(count * width, shape.cache_values * width * context, available())
    network = read_network(file, shape, context, dtype, device, progress)
    precision = "float32" if width == 4 else "bfloat16"
    quantization = f"{precision} (from {file.quantization()})"
    return TorchBackend(network, quantization, shape.vocabulary, context, room.slots, count * width, device)


def _written_out(file: GgufFile, context: int | None) -> Shape | None:
    """The shape of a model that `torch_llama` computes; None where transformers' classes are needed."""
    try:
        shape = shape_from_gguf(file)
    except ModelError as error:
        if error.code != "unsupported":
            raise
        return None
    window = sliding_window(file, shape.architecture)
    return None if 0 < window < min(shape.context, context or shape.context) else shape


def physical_cores() -> int:
    """Cores without their second threads, which only wait for each other in matrix products."""
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({path.read_text("ascii") for path in siblings}) or os.cpu_count() or 1


def _use_threads(threads: int | None) -> None:
    torch.set_num_threads(threads or physical_cores())
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:  # only the first call in a process may set it
        return


def _cuda_available() -> int:
    free: int = torch.cuda.mem_get_info()[0]
    return free
