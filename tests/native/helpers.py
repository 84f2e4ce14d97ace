"""What the native tests share: packed matrices in memory, plain references in float64, tiny checkpoints."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edged.engine.backends.native_model import NativeModel
from edged.engine.kernels.build import HERE, BuildError, compile_flags, compiler
from edged.engine.kernels.library import Tensor, load_library
from edged.models.formats.packed import open_packed
from edged.models.formats.tiles import Codes, Kind, tile_codes, tile_floats
from edged.models.packing.pack import pack_path
from edged.models.packing.rounding import quantize


def _kernels() -> list[str]:
    """The instruction sets that run here; `portable` in name alone where nothing could be compiled (all is skipped)."""
    try:
        library = load_library()
    except BuildError:
        return ["portable"]
    return [name for name in ("vnni", "avx2", "dotprod", "neon", "portable") if library.kernels(name)]


ALL_KERNELS = _kernels()


def kernel_check(folder: Path, command: list[str], machine: str, *flags: str) -> Path:
    """The program `kernel_check.cpp`, which compares all kernels with plain C++, compiled with the kernels' sources for
    a processor's family."""
    program = Path(__file__).with_name("kernel_check.cpp")
    sources = [*HERE.glob("isa/*.cpp"), HERE / "model.cpp", program]
    common = [*command, "-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", *flags]

    def compiled(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        own = [f"-I{HERE}"] if source == program else compile_flags(source, machine)
        subprocess.run([*common, *own, "-c", str(source), "-o", str(made)], check=True)
        return str(made)

    executable = folder / "kernel_check"
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*common, *objects, "-o", str(executable)], check=True)
    return executable


def linked_check(folder: Path, program: str, *sources: Path) -> Path:
    """A C++ program of this folder, compiled with some of the kernels' sources and linked with the library in use,
    whose kernels it calls."""
    library = load_library().path
    executable = folder / "check"
    command = [*compiler(), "-std=c++17", "-O1", "-pthread", "-ffp-contract=off", f"-I{HERE}"]
    named = [str(Path(__file__).with_name(program)), *map(str, sources), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*command, *named, "-Wl,--allow-shlib-undefined", "-o", str(executable)], check=True)
    return executable


class Packed:
    """One matrix packed in memory, with the float32 values that its codes stand for."""

    def __init__(self, values: np.ndarray, kind: Kind, group: int = 32) -> None:
        self.rows, self.cols = values.shape
        if kind.is_float:
            self.values, data = _floats(values, kind)
        else:
            codes = quantize(values, kind, group)
            self.values, data = dequantized(codes, kind, group), tile_codes(codes, kind, group)
        self._room = np.zeros(len(data) + 128, np.uint8)
        start = -self._room.ctypes.data % 64
        self._room[start : start + len(data)] = np.frombuffer(data, np.uint8)
        self.tensor = Tensor(kind, self.rows, self.cols, group, self._room.ctypes.data + start, len(data))

    def times(self, x: np.ndarray, kernels: str = "auto", threads: int = 1) -> np.ndarray:
        """x [m, cols] · wᵀ by the kernels, float32 [m, rows]."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.full((x.shape[0], -(-self.rows // 8) * 8), np.nan, np.float32)
        load_library().matmul(self.tensor, x.ctypes.data, x.shape[0], y.ctypes.data, threads=threads, kernels=kernels)
        return y[:, : self.rows]

    def row(self, index: int) -> np.ndarray:
        """A row as the embedding reads it."""
        out = np.empty(self.cols, np.float32)
        load_library().dequantize(self.tensor, index, out.ctypes.data)
        return out


def _floats(values: np.ndarray, kind: Kind) -> tuple[np.ndarray, bytes]:
    if kind is Kind.F16:
        stored = values.astype(np.float16)
        return stored.astype(np.float32), tile_floats(stored)
    if kind is Kind.BF16:
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return (bits.astype(np.uint32) << 16).view(np.float32), tile_floats(bits)
    return values.astype(np.float32), tile_floats(values.astype(np.float32))


def dequantized(codes: Codes, kind: Kind, group: int) -> np.ndarray:
    """What coded rows stand for, float32 [rows, cols]."""
    wide = codes.codes.astype(np.float32) - (8 if kind in {Kind.Q4, Kind.Q4_BYTE} else 0)
    cols = wide.shape[1]
    values = np.repeat(codes.scale.astype(np.float32), group, 1)[:, :cols] * wide
    if codes.minimum is not None:
        step = 8 if kind is Kind.Q4_BYTE_MIN else 1
        values = values + np.repeat(codes.minimum.astype(np.float32) * step, group, 1)[:, :cols]
    return values if codes.factor is None else values * (codes.factor.astype(np.float32) / 128)[:, None]


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations as the kernels see them: int8 in groups of 32, as float64 again."""
    m, k = x.shape
    padded = np.zeros((m, -(-k // 32) * 32), np.float32)
    padded[:, :k] = x
    groups = padded.reshape(m, -1, 32)
    top = np.abs(groups).max(2, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    codes = np.rint(groups * inverse)
    return (codes.astype(np.float64) * (top / np.float32(127))).reshape(m, -1)[:, :k]


def open_model(folder: Path, **options: Any) -> NativeModel:
    """A packed folder in memory with a small cache."""
    return NativeModel(open_packed(folder), **{"context": 256, "blocks": 64, "threads": 2, **options})


def tiny_checkpoint(folder: Path, family: str, seed: int = 0, **changes: Any) -> Any:
    """Saves a tiny random transformers model of a family into `folder` and returns it."""
    import torch
    import transformers as tf

    name = {
        "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma",
        "gemma2": "Gemma2", "gemma3": "Gemma3", "granite": "Granite", "smollm3": "SmolLM3", "olmo2": "Olmo2",
        "olmo3": "Olmo3", "ernie4_5": "Ernie4_5", "hunyuan": "HunYuanDenseV1", "exaone4": "Exaone4",
        "ministral3": "Ministral3", "phi3": "Phi3", "stablelm": "StableLm", "glm4": "Glm4",
        "lfm2": "Lfm2", "qwen3_5": "Qwen3_5", "qwen3_moe": "Qwen3Moe", "granitemoe": "GraniteMoe",
    }[family]  # fmt: skip
    text = family in {"gemma3", "qwen3_5"}
    make_config = getattr(tf, f"{name}TextConfig" if text else f"{name}Config")
    make_model = getattr(tf, f"{name}ForCausalLM")
    figures = {
        "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 203, "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.06,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = make_model(make_config(**figures)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                centred = family.startswith("gemma") or (family == "qwen3_5" and "linear_attn" not in name)
                parameter.normal_(0 if centred else 1, 0.2)
            if name.endswith("A_log"):  # states that last, as in trained models
                parameter.uniform_(-6, -2)
            if name.endswith(("conv.weight", "conv1d.weight")):
                parameter.normal_(0, 0.5 if family == "qwen3_5" else 0.2)
            # Rounding decides which of two nearly equal experts is chosen: so the last of them weighs little.
            if name.endswith(("mlp.gate.weight", "router.weight")):
                parameter.mul_(10)
            if name.endswith(".bias"):
                parameter.normal_(0, 0.5)
    align_queries(model, 0.3)
    model.save_pretrained(folder)
    return model


def align_queries(model: Any, own: float) -> None:
    """Makes queries of linear attention resemble its keys, with so much of what they were, as in trained models: else
    results are near 0, and the norms after them enlarge rounding."""
    import torch

    nets = [module for module in model.modules() if hasattr(module, "in_proj_qkv")]
    with torch.no_grad():
        for net in nets:
            for parameter in (net.in_proj_qkv.weight, net.conv1d.weight):
                parameter[: net.key_dim].mul_(own).add_(parameter[net.key_dim : 2 * net.key_dim])


def pack_tiny(tmp: Path, family: str, bits: int | None = None, **changes: Any) -> tuple[Any, Path]:
    """A tiny checkpoint and its packed folder."""
    model = tiny_checkpoint(tmp / "checkpoint", family, **changes)
    pack_path(tmp / "checkpoint", tmp / "packed", bits=bits)
    return model, tmp / "packed"


def pack_overflowing(tmp: Path, bits: int | None) -> Path:
    """A packed model whose logits are beyond float32."""
    import torch

    model = tiny_checkpoint(tmp / "checkpoint", "llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
        model.lm_head.weight.mul_(100)
    model.save_pretrained(tmp / "checkpoint")
    pack_path(tmp / "checkpoint", tmp / "packed", bits=bits)
    return tmp / "packed"


__all__ = [
    "ALL_KERNELS",
    "Packed",
    "align_queries",
    "dequantized",
    "open_model",
    "pack_overflowing",
    "pack_tiny",
    "rounded",
    "tiny_checkpoint",
]
