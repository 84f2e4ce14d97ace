"""The compiled kernels, loaded with ctypes: the structs of `api.h`, and the library found or built.

A library beside this file whose name carries the sources' fingerprint is used; else, with a compiler, one is built
there or (in a read-only installation) in the user's cache folder. ctypes releases the interpreter lock around every
call.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Final

from edged.core.prompt import Sampling
from edged.engine.kernels.build import HERE, BuildError, build, fingerprint
from edged.models.store.user_cache import user_cache

API_VERSION: Final = 11
ERROR_BYTES: Final = 512


class _Struct(Structure):
    """A struct of `api.h`. Without `__dict__`, so that a misspelled field is an AttributeError and not ignored."""

    __slots__ = ()


class Config(_Struct):
    """EdgedConfig."""

    __slots__ = ()
    _fields_ = [
        *((name, c_int32) for name in ("layers", "width", "ffn", "heads", "kv_heads", "head_dim", "vocabulary")),
        *((name, c_int32) for name in ("context", "blocks", "max_rows", "threads", "flags")),
        *((name, c_float) for name in ("epsilon", "embedding_scale", "residual_scale", "logit_scale")),
        *((name, c_float) for name in ("attention_scale", "attention_cap", "logit_cap", "growth")),
        *(
            (name, c_int32)
            for name in ("growth_tokens", "rope_pairs", "ropes", "window_blocks", "experts", "experts_used")
        ),
        *((name, c_void_p) for name in ("inverse_frequency", "rope_scale", "attention")),
        *(
            (name, c_int32)
            for name in ("taps", "states", "delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim")
        ),
    ]


class Tensor(_Struct):
    """EdgedTensor."""

    __slots__ = ()
    _fields_ = [
        *((name, c_int32) for name in ("kind", "rows", "cols", "group")),
        ("data", c_void_p),
        ("bytes", c_size_t),
    ]


class Step(_Struct):
    """EdgedStep."""

    __slots__ = ()
    _fields_ = [
        ("tokens", c_void_p),
        ("token_count", c_int32),
        ("slices", c_void_p),
        ("slice_count", c_int32),
        ("blocks", c_void_p),
        ("block_count", c_int32),
        ("wanted", c_void_p),
        ("wanted_count", c_int32),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("hidden", c_void_p),
    ]


class Merges(_Struct):
    """EdgedMerges."""

    __slots__ = ()
    _fields_ = [
        *((name, c_void_p) for name in ("letters", "pairs", "ranks", "merged", "bytes", "ends", "by_bytes")),
        *((name, c_int64) for name in ("pair_count", "vocabulary", "whole_count")),
    ]


class SamplingCall(_Struct):
    """EdgedSampling; `sampling_call` makes one."""

    __slots__ = ()
    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty", "uniform")),
        ("top_k", c_int32),
        ("seen_count", c_int32),
        ("seen", c_void_p),
    ]


def sampling_call(how: Sampling) -> SamplingCall:
    """How tokens are chosen; the seen tokens and the uniform draw are left empty."""
    call = SamplingCall(how.temperature, how.top_p, how.min_p, how.repetition_penalty)
    call.top_k = min(how.top_k, 2**31 - 1)
    return call


class Decoding(_Struct):
    """EdgedDecoding."""

    __slots__ = ()
    _fields_ = [
        *((name, c_int32) for name in ("token", "position", "first_block", "first_window_block", "block_count")),
        *((name, c_int32) for name in ("state", "next_state", "reserved")),
        ("sampling", SamplingCall),
        ("uniforms", c_void_p),
        ("past", c_void_p),
        ("past_count", c_int32),
        ("chosen", c_void_p),
    ]


class KernelError(Exception):
    """A call into the kernels was refused; the message says why."""


class Library:
    """The C functions with their types. Failing calls raise KernelError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        c = ctypes.CDLL(str(path))
        c.edged_api_version.restype = c_int32
        if c.edged_api_version() != API_VERSION:
            raise BuildError(f"{path} has another interface than this version; remove it")
        c.edged_kernels.restype, c.edged_kernels.argtypes = c_char_p, [c_char_p]
        c.edged_open.restype = c_void_p
        c.edged_open.argtypes = [POINTER(Config), POINTER(Tensor), c_int32, c_char_p, c_char_p]
        c.edged_step.restype, c.edged_step.argtypes = c_int32, [c_void_p, POINTER(Step), c_char_p]
        c.edged_decode.restype = c_int32
        c.edged_decode.argtypes = [
            c_void_p, POINTER(Decoding), c_int32, c_void_p, c_int32, c_void_p, c_int32, c_int32, c_void_p,
            POINTER(c_int32), c_char_p,
        ]  # fmt: skip
        c.edged_copy_block.restype = c_int32
        c.edged_copy_block.argtypes = [c_void_p, c_int32, c_int32, c_int32, c_char_p]
        c.edged_memory.restype, c.edged_memory.argtypes = c_int64, [c_void_p, c_int32]
        c.edged_close.restype, c.edged_close.argtypes = None, [c_void_p]
        c.edged_bpe_encode.restype = c_int32
        c.edged_bpe_encode.argtypes = [
            POINTER(Merges), c_char_p, c_void_p, c_int32, c_void_p, POINTER(c_int64), c_char_p,
        ]  # fmt: skip
        c.edged_bpe_merge.restype = c_int32
        c.edged_bpe_merge.argtypes = [
            POINTER(Merges), c_void_p, c_void_p, c_int32, c_void_p, POINTER(c_int64), c_char_p,
        ]  # fmt: skip
        c.edged_choose.restype = c_int32
        c.edged_choose.argtypes = [c_void_p, c_int32, POINTER(SamplingCall), c_char_p, POINTER(c_int32), c_char_p]
        c.edged_matmul.restype = c_int32
        c.edged_matmul.argtypes = [
            POINTER(Tensor), c_void_p, c_int32, c_void_p, c_int32, c_int32, c_int32, c_int64, c_void_p, c_char_p,
            c_char_p,
        ]  # fmt: skip
        c.edged_dequantize.restype, c.edged_dequantize.argtypes = (
            c_int32,
            [POINTER(Tensor), c_int32, c_void_p, c_char_p],
        )
        c.edged_read_bandwidth.restype, c.edged_read_bandwidth.argtypes = (
            c_double,
            [c_void_p, c_int64, c_int32, c_int32],
        )
        self._c = c
        self._error = ctypes.c_char * ERROR_BYTES

    def kernels(self, name: str = "auto") -> str | None:
        """The name of the kernels that `name` selects on this processor; None: they do not run here."""
        found: bytes | None = self._c.edged_kernels(name.encode())
        return found.decode() if found else None

    def open(self, config: Config, tensors: ctypes.Array[Tensor], kernels: str) -> int:
        """An engine's handle. The memory that `tensors` points to must outlive it."""
        error = self._error()
        handle: int | None = self._c.edged_open(config, tensors, len(tensors), kernels.encode(), error)
        if not handle:
            raise KernelError(_message(error))
        return handle

    def step(self, handle: int, step: Step) -> None:
        """Computes one step."""
        error = self._error()
        self._check(self._c.edged_step(handle, step, error), error)

    def decode(
        self, handle: int, sequences: ctypes.Array[Decoding], blocks: tuple[int, int], stops: tuple[int, int],
        steps: int, interrupt: int,
    ) -> int:  # fmt: skip
        """How many of `steps` decode steps were computed. `blocks`, `stops`: address and count of int32; `interrupt`:
        the address of one."""
        error, done = self._error(), c_int32()
        failed = self._c.edged_decode(handle, sequences, len(sequences), *blocks, *stops, steps, interrupt, done, error)
        self._check(failed, error)
        return done.value

    def copy_block(self, handle: int, windowed: bool, source: int, target: int) -> None:
        """Copies the keys and values of one cache block into another; of layers with or without a window."""
        error = self._error()
        self._check(self._c.edged_copy_block(handle, windowed, source, target, error), error)

    def memory(self, handle: int) -> tuple[int, int]:
        """Bytes of the cache and of the buffers."""
        return self._c.edged_memory(handle, 0), self._c.edged_memory(handle, 1)

    def close(self, handle: int) -> None:
        """Frees an engine."""
        self._c.edged_close(handle)

    def bpe_encode(self, tables: Merges, text: bytes, lengths: int, pieces: int, ids: int) -> int:
        """How many token ids were written to the address `ids` (space for one a byte) for `pieces` byte strings that
        follow each other in `text`; their lengths, int32, are at the address `lengths`."""
        error, count = self._error(), c_int64()
        self._check(self._c.edged_bpe_encode(tables, text, lengths, pieces, ids, count, error), error)
        return count.value

    def bpe_merge(self, tables: Merges, symbols: int, lengths: int, pieces: int, ids: int) -> int:
        """The same for pieces of symbols, int32 at the address `symbols`."""
        error, count = self._error(), c_int64()
        self._check(self._c.edged_bpe_merge(tables, symbols, lengths, pieces, ids, count, error), error)
        return count.value

    def choose(self, logits: int, count: int, call: SamplingCall, kernels: str = "auto") -> int:
        """The token chosen from `count` float32 at the address `logits`; -1 where the largest of them is not finite."""
        error, token = self._error(), c_int32()
        self._check(self._c.edged_choose(logits, count, call, kernels.encode(), token, error), error)
        return token.value

    def matmul(
        self, tensor: Tensor, x: int, m: int, y: int, *, threads: int = 1, repeats: int = 1, copies: int = 1, stride:
        int = 0,
        kernels: str = "auto",
    ) -> list[float]:  # fmt: skip
        """One product of a packed matrix, `repeats` times; the seconds of each. `x`, `y`: addresses of float32."""
        error, seconds = self._error(), (c_double * repeats)()
        failed = self._c.edged_matmul(
            tensor, x, m, y, threads, repeats, copies, stride, seconds, kernels.encode(), error
        )
        self._check(failed, error)
        return list(seconds)

    def dequantize(self, tensor: Tensor, row: int, out: int) -> None:
        """One row of a packed matrix as float32 [cols] at the address `out`."""
        error = self._error()
        self._check(self._c.edged_dequantize(tensor, row, out, error), error)

    def read_bandwidth(self, address: int, size: int, threads: int, repeats: int) -> float:
        """Bytes a second at which threads together read this memory (median)."""
        speed: float = self._c.edged_read_bandwidth(address, size, threads, repeats)
        if speed <= 0:
            raise KernelError(f"the memory's speed cannot be measured with {threads} threads; give fewer")
        return speed

    @staticmethod
    def _check(failed: int, error: ctypes.Array[ctypes.c_char]) -> None:
        if failed:
            raise KernelError(_message(error))


def _message(error: ctypes.Array[ctypes.c_char]) -> str:
    return error.value.decode("utf-8", "replace")


@lru_cache(maxsize=1)
def load_library() -> Library:
    """The kernels of this installation, built on first use where they are missing. Raises BuildError without a
    compiler."""
    override = os.environ.get("KERNELS_LIBRARY")
    if override:
        return Library(Path(override))
    name = f"_native-{fingerprint()}.so"
    cache = user_cache()
    folders = [HERE, cache] if cache else [HERE]
    for folder in folders:
        if (folder / name).is_file():
            return Library(folder / name)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return Library(build(folder / name))
        except OSError:
            continue
    raise BuildError("the kernels are not built, and no folder for them can be written")
