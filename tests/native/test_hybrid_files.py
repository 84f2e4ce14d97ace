"""Files of models with recurrent layers: what lies beside the language model, and figures that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edged.core.errors import ModelError
from edged.engine.backends.native_model import Part
from edged.models.formats.config_shape import native_shape_from_config
from edged.models.packing.pack import pack_path
from tests.native.families import DELTA, write_gguf
from tests.native.helpers import open_model, tiny_checkpoint

QWEN = {**DELTA, "num_hidden_layers": 4, "full_attention_interval": 2}
LFM2 = {"layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model of each family."""
    folder = tmp_path_factory.mktemp("hybrid")
    shapes = {"lfm2": LFM2, "qwen3_5": QWEN}
    return {family: tiny_checkpoint(folder / family, family, **more) for family, more in shapes.items()}


def logits(folder: Path) -> np.ndarray:
    with open_model(folder) as model:
        return model.step([Part([1, 2, 3, 4], 0, [0], 4, next_state=0)])


def test_a_checkpoint_with_an_encoder_of_images_is_its_language_model(tmp_path: Path) -> None:
    """As Qwen publishes them: names one level below, the encoder and layers that propose tokens beside them."""
    tiny_checkpoint(tmp_path / "text", "qwen3_5", **QWEN)
    pack_path(tmp_path / "text", tmp_path / "packed")
    tensors = load_file(tmp_path / "text/model.safetensors")
    whole = tmp_path / "whole"
    whole.mkdir()
    renamed = {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
    extra = {name: np.zeros((8, 8), np.float32) for name in ("model.visual.patch_embed.weight", "mtp.fc.weight")}
    save_file({**renamed, **extra}, whole / "model.safetensors")
    config = json.loads((tmp_path / "text/config.json").read_text())
    composite = {"model_type": "qwen3_5", "text_config": config, "vision_config": {}, "tie_word_embeddings": False}
    (whole / "config.json").write_text(json.dumps(composite))
    pack_path(whole, tmp_path / "packed_whole")
    assert np.array_equal(logits(tmp_path / "packed"), logits(tmp_path / "packed_whole"))


def test_layers_that_only_propose_tokens_are_left_out(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGUF files count them among their blocks."""
    import gguf

    model = models["qwen3_5"]
    pack_path(write_gguf(model, tmp_path / "plain.gguf"), tmp_path / "plain")
    write = gguf.GGUFWriter.write_header_to_file

    def with_proposals(writer: Any, *rest: Any) -> None:
        for name in ("attn_norm", "nextn.eh_proj"):
            writer.add_tensor(f"blk.4.{name}.weight", np.zeros((8, 8), np.float32))
        write(writer, *rest)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_proposals)
    figures = {"block_count": 5, "nextn_predict_layers": 1}
    pack_path(write_gguf(model, tmp_path / "more.gguf", metadata=figures), tmp_path / "more")
    assert np.array_equal(logits(tmp_path / "plain"), logits(tmp_path / "more"))
    with pytest.raises(ModelError, match=r"blk\.4\.attn_norm"):
        pack_path(write_gguf(model, tmp_path / "unnamed.gguf"), tmp_path / "unnamed")


@pytest.mark.parametrize(
    ("family", "metadata", "words"),
    [
        ("lfm2", {"attention.head_count_kv": [0, 2]}, "attention.head_count_kv"),
        ("lfm2", {"attention.head_count_kv": [0, 0, 0]}, "different numbers of key/value heads"),
        ("lfm2", {"attention.head_count_kv": [0, 2, 1]}, "different numbers of key/value heads"),
        ("lfm2", {"attention.head_count_kv": "two"}, "attention.head_count_kv"),
        ("lfm2", {"shortconv.l_cache": None}, "shortconv.l_cache"),
        ("lfm2", {"shortconv.l_cache": 1}, "kinds of the model's layers"),
        ("lfm2", {"shortconv.l_cache": 4}, "taps"),
        ("lfm2", {"shortconv.l_cache": 5}, "taps"),
        ("qwen3_5", {"ssm.inner_size": 33}, "do not fit together"),
        ("qwen3_5", {"ssm.state_size": 12}, "kinds of the model's layers"),
        ("qwen3_5", {"ssm.group_count": 3}, "kinds of the model's layers"),
        ("qwen3_5", {"ssm.group_count": 1}, "attn_qkv"),
        ("qwen3_5", {"full_attention_interval": 1}, "tensor"),
        ("qwen3_5", {"full_attention_interval": 9}, "kinds of the model's layers"),
    ],
)
def test_wrong_figures_are_refused(
    models: dict[str, Any], tmp_path: Path, family: str, metadata: dict[str, Any], words: str
) -> None:
    """Each with one sentence, before anything is packed."""
    with pytest.raises(ModelError, match=words):
        pack_path(write_gguf(models[family], tmp_path / "model.gguf", metadata=metadata), tmp_path / "packed")


def test_convolutions_with_biases_are_refused_by_name(tmp_path: Path) -> None:
    """No published model has them; computed without, it would be another model."""
    tiny_checkpoint(tmp_path / "checkpoint", "lfm2", conv_bias=True, **LFM2)
    with pytest.raises(ModelError, match=r"does not use the tensor model\.layers\.0\.conv\."):
        pack_path(tmp_path / "checkpoint", tmp_path / "packed")


@pytest.mark.parametrize(
    "layers", [["conv", "mamba", "full_attention"], ["conv", "conv", "conv"], ["conv", "full_attention"]]
)
def test_layers_of_other_kinds_are_refused(tmp_path: Path, layers: list[str]) -> None:
    """Also a model without any attention, and a list of another length."""
    tiny_checkpoint(tmp_path, "lfm2", **LFM2)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match=r"kinds"):
        native_shape_from_config({**config, "layer_types": layers})
