"""Packing takes the memory of a few slabs, however large the model is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.support import ROOT
from tests.tiny import written

WIDTH, FFN, VOCABULARY = 256, 1024, 256
MEGABYTE = 1_000_000


def _sizes(layers: int) -> dict[str, tuple[int, int]]:
    """Matrices of 1.05 M weights a layer, by their names in a GGUF file."""
    parts = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN),
    }  # fmt: skip
    matrices = {f"blk.{layer}.{name}": size for layer in range(layers) for name, size in parts.items()}
    return {"token_embd": (VOCABULARY, WIDTH), **matrices}


def make_gguf(path: Path, layers: int) -> Path:
    """A Llama as F16, the same values in every layer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, size in _sizes(layers).items():
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float16))
    norms = [f"blk.{layer}.{part}_norm" for layer in range(layers) for part in ("attn", "ffn")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    return written(writer, path)


def make_checkpoint(path: Path, layers: int) -> Path:
    """The same as a folder of config.json and one safetensors file."""
    names = {
        "token_embd": "embed_tokens", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    tensors = {}
    for name, size in _sizes(layers).items():
        *layer, part = name.removeprefix("blk.").split(".")
        front = f"model.layers.{layer[0]}." if layer else "model."
        tensors[f"{front}{names[part]}.weight"] = np.ones(size, np.float16)
    for layer in range(layers):
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{part}.weight"] = np.ones(WIDTH, np.float16)
    tensors["model.norm.weight"] = np.ones(WIDTH, np.float16)
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F16", "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.tobytes())
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": FFN,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def peak_of_packing(source: Path, destination: Path) -> int:
    """Bytes of resident memory, at most, of a process that packs. (ru_maxrss would hold what its parent had, too.)"""
    code = (
        "import sys; from pathlib import Path; from edged.models.packing.pack import pack_path\n"
        "pack_path(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(source), str(destination)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == result.returncode, result.stderr
    return int(result.stdout) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("make", [make_gguf, make_checkpoint])
def test_the_peak_of_packing_does_not_grow_with_the_model(tmp_path: Path, make: object) -> None:
    """30 layers (63 MB) take hardly more than 2 (4 MB): what was packed is let go of."""
    assert callable(make)
    peaks = [peak_of_packing(make(tmp_path / f"m{n}", n), tmp_path / f"packed{n}") for n in (2, 30)]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 120 * MEGABYTE
    assert peaks[1] - peaks[0] < 25 * MEGABYTE
