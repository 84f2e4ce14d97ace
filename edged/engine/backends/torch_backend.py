"""The torch backend: slots of key/value caches over a network of `torch_llama` or `torch_hub`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from edged.engine.backends.base import MAX_SLICE, ComputeError, Decoding, Logits, Slice


class Network(Protocol):
    """What the backend needs of a network."""

    def new_cache(self) -> Any:
        """An empty key/value cache, of the network's own kind."""

    def forward(self, cache: Any, tokens: Any, start: int, every: bool) -> Any:
        """tokens int64 [T] at positions start… → logits [T, vocabulary], or with `every` False [1, vocabulary].

        Adds the tokens to the cache, which holds `start` of them. Raises RuntimeError or MemoryError.
        """


class TorchBackend:
    """Sequences one after the other, each in its own cache, so that a text never depends on others in the batch."""

    name = "torch"
    exact = False
    drafts = 0
    max_steps = 1
    embeds = False

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

    def hidden(self, slot: int, start: int, tokens: Sequence[int]) -> Logits | ComputeError:
        raise NotImplementedError("the torch backend gives no hidden states")

    def keep(self, slot: int, token: int) -> None:
        raise ComputeError(f"slot {slot} has no draft {token}: the torch backend takes none")

    def decode(
        self, sequences: Sequence[Decoding], steps: int, stops: array[int], interrupt: array[int]
    ) -> list[list[int]]:
        raise NotImplementedError("the torch backend computes one step a call, by `run`")

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


def torch_device() -> str:
    """Where torch computes on this machine: `cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_gpu_bytes() -> int:
    """What the GPU's memory has left."""
    free: int = torch.cuda.mem_get_info()[0]
    return free


def use_threads(threads: int | None) -> None:
    """Sets the number of threads that compute; None: one for each core."""
    torch.set_num_threads(threads or physical_cores())
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:  # only the first call in a process may set it
        return


def physical_cores() -> int:
    """Cores without their second threads, which only wait for each other in matrix products."""
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({path.read_text("ascii") for path in siblings}) or os.cpu_count() or 1
