"""A packed model in memory, computed by the kernels: slices of many sequences in one call, caches as tables of
blocks."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edged.engine.backends.base import Decoding
from edged.engine.kernels import library as c
from edged.engine.kernels.library import Config, KernelError, Library, Step, Tensor, load_library, sampling_call
from edged.models.formats.packed import PackedModel
from edged.models.formats.shape import DeltaNet, Shape

BLOCK: Final = 32  # tokens of a cache block
MAX_ROWS: Final = 512  # tokens computed in one step
_LAYER: Final = (
    "attention_norm", "query", "key", "value", "query_bias", "key_bias", "value_bias", "query_norm", "key_norm",
    "out", "ffn_norm", "gate_up", "gate", "up", "down", "attention_norm_bias", "out_bias", "post_attention_norm",
    "ffn_norm_bias", "gate_up_bias", "down_bias", "post_ffn_norm", "router", "conv_in", "taps", "conv_out",
    "attention_gate", "delta_in", "delta_gate", "delta_beta", "delta_alpha", "delta_out", "delta_decay",
    "delta_step_bias", "delta_norm",
)  # fmt: skip
_KINDS: Final = {"attention": 0, "convolution": 1, "delta_net": 2}  # EdgedLayerKind
_LAYER_NORM, _GELU, _NORM_AFTER_ROPE, _WIDE_NORM, _NORMALIZE_EXPERTS = 1, 2, 4, 8, 16  # EdgedFlag
_GATED, _TILED_HEADS = 32, 64


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one sequence in a step. `blocks`: the sequence's block table, covering `start` + tokens;
    `window_blocks`: that of layers with a sliding window, of the same length, None: `blocks`. Blocks behind the window
    are not read.

    The keys and values of the tokens are written into the table's blocks; tokens before `start` must be there already.
    Logits are wanted after the last `wanted` tokens. The parts of one step belong to different sequences.
    `state`, `next_state`: of a model that has recurrent states, the number of the one before the first token (-1 at the
    start) and of that after the last, which no part of the step reads.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    wanted: int = 1
    state: int = -1
    next_state: int = -1
    window_blocks: Sequence[int] | None = None


class NativeModel:
    """Weights (mapped, shared), a cache of `blocks` blocks and the threads that compute. One caller at a time.

    `window_blocks`: how many blocks the cache has of the layers with a sliding window, None: as many as of the others.
    `states`: how many recurrent states it holds, where the model has any.
    `context`: the most tokens of a sequence. `threads` 0: one for each core that the process may use. `kernels`: `auto`
    or a name. Raises KernelError where the model or a step cannot be run. A step that is refused for what it asks has
    changed nothing; one whose logits are not finite was computed, and its tokens' keys and values are in the blocks.
    """

    def __init__(
        self,
        packed: PackedModel,
        *,
        context: int,
        blocks: int,
        window_blocks: int | None = None,
        states: int = 16,
        threads: int = 0,
        max_rows: int = MAX_ROWS,
        kernels: str = "auto",
        library: Library | None = None,
    ) -> None:
        shape = packed.manifest.shape
        self.packed = packed
        self.vocabulary = shape.vocabulary
        self.context = context
        self.blocks = blocks
        self.window = shape.window
        self.window_blocks = blocks if window_blocks is None else window_blocks
        self.states = states if shape.state_values else 0
        self.max_rows = max_rows
        self.threads = threads or usable_cores()
        self.kernel_seconds = 0.0  # spent in the kernels so far
        self._library = library or load_library()
        self.kernels = self._library.kernels(kernels) or kernels
        self._bytes = np.frombuffer(packed.data, np.uint8)  # keeps the mapping alive as long as the engine
        ropes = shape.ropes_for(context)
        frequencies = np.asarray([rope.frequencies for rope in ropes], np.float32)
        scales = np.asarray([rope.scale for rope in ropes], np.float32)
        kinds = [_KINDS[kind] for kind in shape.kinds]
        attention = np.column_stack([kinds, shape.attention]).astype(np.int32)
        net = shape.delta_net or DeltaNet(0, 0, 0, 0)
        config = Config(
            layers=shape.layers, width=shape.width, ffn=shape.ffn, heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.head_dim, vocabulary=shape.vocabulary, context=context, blocks=blocks, max_rows=max_rows,
            threads=self.threads, flags=_flags(shape), epsilon=shape.epsilon,
            embedding_scale=shape.embedding_scale, residual_scale=shape.residual_scale, logit_scale=shape.logit_scale,
            attention_scale=shape.attention_scale, attention_cap=shape.attention_cap, logit_cap=shape.logit_cap,
            growth=shape.growth, growth_tokens=shape.growth_tokens, rope_pairs=shape.rotated // 2, ropes=len(ropes),
            window_blocks=self.window_blocks, experts=shape.experts,
            experts_used=shape.experts_used, inverse_frequency=frequencies.ctypes.data, rope_scale=scales.ctypes.data,
            attention=attention.ctypes.data, taps=shape.taps, states=self.states,
            delta_key_heads=net.key_heads, delta_value_heads=net.value_heads, delta_key_dim=net.key_dim,
            delta_value_dim=net.value_dim,
        )  # fmt: skip
        names = ["embedding", "head", "final_norm", "final_norm_bias"]
        names += [f"layers.{layer}.{part}" for layer in range(shape.layers) for part in _LAYER]
        tensors = (Tensor * len(names))(*(self.tensor(name) for name in names))
        self._handle: int | None = self._library.open(config, tensors, kernels)

    def tensor(self, name: str) -> Tensor:
        """The C description of a packed tensor; empty where the model has none of that name."""
        info, place = self.packed.manifest.tensors.get(name), self.packed.place(name)
        if info is None or place is None:
            return Tensor()
        return Tensor(info.kind, info.rows, info.cols, info.group, self._bytes.ctypes.data + place[0], place[1])

    def step(self, parts: Sequence[Part]) -> npt.NDArray[np.float32]:
        """Computes the parts together and returns the wanted logits, float32 [n, vocabulary], in the parts' order."""
        stride = -(-self.vocabulary // 8) * 8
        logits = np.empty((sum(max(0, part.wanted) for part in parts), stride), np.float32)
        self._step(parts, logits=logits.ctypes.data, logits_stride=stride)
        return logits[:, : self.vocabulary]

    def hidden(self, part: Part) -> npt.NDArray[np.float32]:
        """Computes a part and returns what the head would multiply after each wanted token, float32 [n, width]."""
        rows = np.empty((part.wanted, self.packed.manifest.shape.width), np.float32)
        self._step([part], hidden=rows.ctypes.data)
        return rows

    def _step(self, parts: Sequence[Part], **results: int) -> None:
        """`results`: the addresses to which the results are written."""
        if self._handle is None:
            raise KernelError("the model is closed")
        tokens: list[int] = []
        slices: list[int] = []
        tables: list[int] = []
        wanted: list[int] = []
        for part in parts:
            if not 0 <= part.wanted <= len(part.tokens):
                raise KernelError(f"logits after {part.wanted} of {len(part.tokens)} tokens are wanted")
            count = len(part.blocks)
            slices += (part.start, len(part.tokens), *_append_tables(tables, part.blocks, part.window_blocks), count)
            slices += (part.state, part.next_state)
            tokens += part.tokens
            wanted += range(len(tokens) - part.wanted, len(tokens))
        try:
            # All numbers in one array: between two steps the caches are cold, and each allocation costs more.
            numbers = np.array([*tokens, *slices, *tables, *wanted], np.int32)
        except OverflowError as error:
            raise KernelError("a token, position or block is not a 32-bit number") from error
        at = numbers.ctypes.data
        first_slice = at + 4 * len(tokens)
        first_table = first_slice + 4 * len(slices)
        step = Step(
            tokens=at, token_count=len(tokens), slices=first_slice, slice_count=len(parts), blocks=first_table,
            block_count=len(tables), wanted=first_table + 4 * len(tables), wanted_count=len(wanted), **results,
        )  # fmt: skip
        begun = time.perf_counter()
        self._library.step(self._handle, step)
        self.kernel_seconds += time.perf_counter() - begun

    def decode(
        self,
        sequences: Sequence[Decoding],
        tables: Sequence[Sequence[int]],
        steps: int,
        stops: array[int],
        interrupt: array[int],
        window_tables: Sequence[Sequence[int]] | None = None,
        states: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[int]]:
        """The tokens of up to `steps` decode steps for each sequence, as the backend's protocol says.

        `tables`, `window_tables`: their block tables, as in a Part, covering `start` + `steps` tokens. `states`: where
        the model has recurrent states, the present one of each sequence and another; steps write them in turns, so
        after an odd number of steps the other is the newest. No tokens where none could be chosen. Raises KernelError
        where not even one step could be computed.
        """
        if self._handle is None:
            raise KernelError("the model is closed")
        blocks: list[int] = []
        chosen = np.empty((len(sequences), steps), np.int32)
        calls = (c.Decoding * len(sequences))()
        both = zip(tables, tables if window_tables is None else window_tables, strict=True)
        pairs = [(-1, -1)] * len(sequences) if states is None else states
        for call, one, (table, window_table), pair, row in zip(calls, sequences, both, pairs, chosen, strict=True):
            call.token, call.position, call.block_count = one.token, one.start, len(table)
            call.first_block, call.first_window_block = _append_tables(blocks, table, window_table)
            call.state, call.next_state = pair
            call.sampling = sampling_call(one.sampling)
            call.sampling.seen, call.sampling.seen_count = one.seen.buffer_info()
            call.uniforms = one.uniforms.buffer_info()[0]
            if one.history is not None:
                call.past, call.past_count = one.history.buffer_info()
            call.chosen = row.ctypes.data
        numbers = array("i", blocks)
        begun = time.perf_counter()
        ended = stops.buffer_info(), steps, interrupt.buffer_info()[0]
        done = self._library.decode(self._handle, calls, numbers.buffer_info(), *ended)
        self.kernel_seconds += time.perf_counter() - begun
        return [row[:done].tolist() for row in chosen]

    def copy_block(self, source: int, target: int, windowed: bool = False) -> None:
        """Copies the keys and values of one cache block into another; of layers with or without a window."""
        if self._handle is None:
            raise KernelError("the model is closed")
        self._library.copy_block(self._handle, windowed, source, target)

    def memory(self) -> tuple[int, int]:
        """Bytes of the cache (reserved; used as blocks are first written) and of the buffers."""
        if self._handle is None:
            raise KernelError("the model is closed")
        return self._library.memory(self._handle)

    def close(self) -> None:
        """Stops the threads and frees the cache; the weights' mapping goes with the last reference to it."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.close(handle)

    def __enter__(self) -> NativeModel:  # noqa: PYI034 typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def _append_tables(tables: list[int], full: Sequence[int], windowed: Sequence[int] | None) -> tuple[int, int]:
    """Appends the block tables of a sequence; where each begins. Raises KernelError for different lengths."""
    first = len(tables)
    tables += full
    if windowed is None or windowed is full:
        return first, first
    if len(windowed) != len(full):
        raise KernelError("the block tables of a sequence have different lengths")
    tables += windowed
    return first, first + len(full)


def _flags(shape: Shape) -> int:
    """What the model computes in another way than Llama, as EdgedFlag says it."""
    family = shape.family
    return (
        _LAYER_NORM * family.layer_norm
        + _GELU * family.gelu
        + _NORM_AFTER_ROPE * (family.qk_norm == "after_rope")
        + _WIDE_NORM * (family.qk_norm == "wide")
        + _NORMALIZE_EXPERTS * (shape.experts > 0 and shape.normalize_experts)
        + _GATED * family.gated
        + _TILED_HEADS * (shape.delta_net is not None and shape.delta_net.tiled)
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
