"""Every family's GGUF files in torch, and what neither backend runs: a sentence, never other logits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edged.core.errors import ModelError, NoBackend
from edged.engine import load_model
from edged.models.formats.gguf import open_gguf
from edged.models.store.locate import LocatedModel
from tests.native.families import FAMILIES, reference, write_gguf
from tests.native.helpers import tiny_checkpoint

TOKENS = np.random.default_rng(1).integers(0, 203, 300).tolist()


READ: Final = [name for name in FAMILIES if not name.startswith("qwen3_5")]  # transformers does not read those


@pytest.mark.parametrize("name", READ)
def test_a_gguf_file_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    """A prompt of 300 tokens at once and in pieces down to one token: within 1e-4 of transformers."""
    from edged.engine.backends import torch_gguf, torch_hub

    family, changes = FAMILIES[name]
    model = tiny_checkpoint(tmp_path / "checkpoint", family, **changes)
    file = open_gguf(write_gguf(model, tmp_path / "model.gguf"))
    tokens = TOKENS[:40] if name == "mistral" else TOKENS  # GGUF files of Mistral do not say their window
    expected = reference(model, tokens)
    shape = torch_gguf.written_out(file)
    if shape:
        backend = torch_gguf.open_llama(file, shape, 512, "cpu", lambda _: None, lambda: 10**10, exact=True)
    else:
        located = LocatedModel("model.gguf", tmp_path / "model.gguf", "", "gguf", 0)
        backend = torch_hub.open_hub(located, 512, "cpu", lambda _: None, lambda: 10**10, exact=True)
    for sizes in ([len(tokens)], [7, 1, 1, len(tokens) - 10, 1]):
        assert _relative(_logits(backend._network, tokens, sizes), expected) < 1e-4


def _logits(network: Any, tokens: list[int], sizes: list[int]) -> np.ndarray:
    import torch

    cache, rows, at = network.new_cache(), [], 0
    with torch.no_grad():
        for size in sizes:
            rows.append(network.forward(cache, torch.tensor(tokens[at : at + size]), at, every=True))
            at += size
    return torch.cat(rows).numpy()


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max()) if len(a) == len(b) else 1.0


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
@pytest.mark.parametrize(
    ("entry", "metadata", "words"),
    [
        ("llama", {"attention.clamp_kqv": 8.0}, "does not apply llama.attention.clamp_kqv = 8"),
        ("llama", {"attention.sliding_window": 64}, "does not apply llama.attention.sliding_window = 64"),
        ("llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "'longrope'"),
        ("llama", {"expert_count": 8}, "a mixture of experts"),
        ("llama", {"attention.head_count_kv": [2, 1, 2]}, "layers of .* differ in llama.attention.head_count_kv"),
        ("qwen2", {"logit_scale": 0.5, "future.figure": 3}, "does not apply qwen2.future.figure = 3"),
    ],
)
def test_metadata_that_is_not_applied_is_refused_by_name(
    entry: str, metadata: dict[str, Any], words: str, backend: str, tmp_path: Path
) -> None:
    """In either backend, and at once: another installation would not help."""
    family, changes = FAMILIES[entry]
    model = tiny_checkpoint(tmp_path / "checkpoint", family, **changes)
    path = write_gguf(model, tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(NoBackend, match=words) as caught:
        load_model(path, backend, store_root=tmp_path)
    assert "unsupported" == caught.value.code
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
def test_a_tensor_that_is_not_used_is_refused_by_name(tmp_path: Path, backend: str) -> None:
    """transformers would leave it out without a word."""
    from gguf import GGUFWriter

    path = write_gguf(tiny_checkpoint(tmp_path / "checkpoint", "llama"), tmp_path / "model.gguf")
    file, writer = open_gguf(path), GGUFWriter(str(tmp_path / "more.gguf"), "llama")
    for key, value in file.metadata.items():
        kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        if key != "general.architecture":
            kinds[type(value)](key, value)
    for name in file.tensors:
        writer.add_tensor(name, file.dequantize(name))
    writer.add_tensor("blk.1.attn_sinks.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NoBackend, match=r"does not use the tensor blk\.1\.attn_sinks\.weight"):
        load_model(tmp_path / "more.gguf", backend, store_root=tmp_path)


def test_a_list_of_equal_values_is_one_value(tmp_path: Path) -> None:
    """As some converters write it for each layer."""
    from edged.models.formats.gguf_shape import shape_from_gguf

    model = tiny_checkpoint(tmp_path / "checkpoint", "llama")
    path = write_gguf(model, tmp_path / "model.gguf", metadata={"attention.head_count_kv": [2, 2, 2]})
    assert 2 == shape_from_gguf(open_gguf(path)).kv_heads


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Path:
    """The folder of a checkpoint, for its tokenizer."""
    return tiny_checkpoint


SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "expert_layer_period": 2,
                   "mamba_d_state": 4, "use_mamba_kernels": False}),
        ("RecurrentGemma", {"head_dim": 16}),
        ("Phimoe", {"num_local_experts": 4}),
        ("Mamba", {}),
        ("Rwkv", {}),
        ("Gemma4Text", {"head_dim": 16, "vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 16}),
    ],
)  # fmt: skip
def test_a_network_that_would_compute_something_else_is_refused(
    name: str, changes: dict[str, Any], tokenizer: Path, tmp_path: Path
) -> None:
    """State that is lost between the pieces of a prompt, parts that break when rounded: a sentence, in each backend.

    `auto` refuses at once, by the name of the architecture.
    """
    import torch
    import transformers as tf

    torch.manual_seed(0)
    make_model = getattr(tf, f"{name.removesuffix('Text')}ForCausalLM")
    make_model(getattr(tf, f"{name}Config")(**SIZES, **changes)).save_pretrained(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, tmp_path / "model")
    for backend in ("auto", "native", "torch"):
        with pytest.raises(NoBackend, match=r"\w+ \w+.*use another model\."):
            load_model(tmp_path / "model", backend, store_root=tmp_path / "store")


def test_longrope_stays_within_one_set_of_frequencies(tokenizer: Path, tmp_path: Path) -> None:
    """transformers takes others for tokens beyond the first training's context, not for those in the cache."""
    family, changes = FAMILIES["phi3, partial longrope"]
    tiny_checkpoint(tmp_path / "model", family, **changes, vocab_size=512)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, tmp_path / "model")
    assert 100 == load_model(tmp_path / "model", "torch", context=400).info.context
    assert 100 == load_model(tmp_path / "model", "native", store_root=tmp_path / "store").info.context
    assert 400 == load_model(tmp_path / "model", "native", context=400, store_root=tmp_path / "store").info.context


def test_an_unused_tensor_of_a_checkpoint_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tokenizer, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.0.self_attn.sinks"] = np.ones(4, np.float32)
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    for backend in ("native", "torch"):
        with pytest.raises(ModelError, match=r"does not use the tensor model\.layers\.0\.self_attn\.sinks"):
            load_model(tmp_path / "model", backend, store_root=tmp_path / "store")
