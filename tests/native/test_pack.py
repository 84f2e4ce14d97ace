"""Packing: GGUF codes are kept bit for bit, checkpoints are rounded well, what cannot be packed is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edged.core.errors import ModelError
from edged.engine.kernels.library import load_library
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import FORMAT, MANIFEST, WEIGHTS, TensorInfo, in_blocks, open_packed, write_weights
from edged.models.formats.tiles import Kind
from edged.models.packing import shapes
from edged.models.packing.pack import pack_path, pack_shape
from tests.native.gguf_types import write_model
from tests.native.helpers import open_model, pack_tiny, tiny_checkpoint

TYPES = {
    "Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "F16": gguf.GGMLQuantizationType.F16, "BF16": gguf.GGMLQuantizationType.BF16, "F32": gguf.GGMLQuantizationType.F32,
}  # fmt: skip
WIDTH, FFN, VOCABULARY, DIM = 64, 96, 50, 16


def write_gguf(path: Path, kind: str, architecture: str = "qwen2", seed: int = 0) -> Path:
    """A one-layer random model of 4 heads and 2 key/value heads whose matrices are all stored as `kind`."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    sizes = {
        "token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), "blk.0.attn_q": (4 * DIM, WIDTH),
        "blk.0.attn_k": (2 * DIM, WIDTH), "blk.0.attn_v": (2 * DIM, WIDTH), "blk.0.attn_output": (WIDTH, 4 * DIM),
        "blk.0.ffn_gate": (FFN, WIDTH), "blk.0.ffn_up": (FFN, WIDTH), "blk.0.ffn_down": (WIDTH, FFN),
    }  # fmt: skip
    for name, size in sizes.items():
        values = random.standard_normal(size).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, TYPES[kind]), raw_dtype=TYPES[kind])
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", random.standard_normal(WIDTH).astype(np.float32))
    if architecture == "qwen2":
        for name, size in (("q", 4 * DIM), ("k", 2 * DIM), ("v", 2 * DIM)):
            writer.add_tensor(f"blk.0.attn_{name}.bias", random.standard_normal(size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _unpacked(folder: Path, name: str) -> np.ndarray:
    with open_model(folder, context=64, blocks=2) as model:
        tensor = model.tensor(name)
        out = np.empty((tensor.rows, tensor.cols), np.float32)
        for row in range(tensor.rows):
            load_library().dequantize(tensor, row, out[row].ctypes.data)
    return out


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_gguf_values_are_kept_bit_for_bit(tmp_path: Path, kind: str, architecture: str) -> None:
    """What the folder holds equals what the gguf package dequantizes; Llama's query and key rows in their own order."""
    path = write_gguf(tmp_path / "model.gguf", kind, architecture)
    pack_path(path, tmp_path / "packed")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for ours, theirs in (
        ("embedding", "token_embd"),
        ("layers.0.query", "blk.0.attn_q"),
        ("layers.0.down", "blk.0.ffn_down"),
    ):
        tensor = stored[f"{theirs}.weight"]
        expected = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(tensor.shape[::-1])
        if ours == "layers.0.query" and architecture == "llama":
            expected = expected.reshape(4, DIM // 2, 2, WIDTH).transpose(0, 2, 1, 3).reshape(expected.shape)
        assert np.array_equal(expected, _unpacked(tmp_path / "packed", ours))


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    """The metadata of the GGUF file, with its lists, is kept in a file without tensors."""
    path = write_gguf(tmp_path / "model.gguf", "Q4_0")
    pack_path(path, tmp_path / "packed")
    kept = open_gguf(tmp_path / "packed" / "tokenizer.gguf")
    assert open_gguf(path).metadata == kept.metadata
    assert {} == kept.tensors


def test_other_gguf_types_are_refused_by_name(tmp_path: Path) -> None:
    """TQ2_0 is named in the refusal, with what to use in its place, and nothing is left behind."""
    path = tmp_path / "model.gguf"
    write_model(path, {"ffn_down": "TQ2_0"})
    with pytest.raises(ModelError, match=r"TQ2_0.*Q2_K") as refusal:
        pack_path(path, tmp_path / "packed")
    assert "unsupported" == refusal.value.code
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_weights_too_large_for_any_scale_are_refused(tmp_path: Path) -> None:
    """Where squared errors overflow, too: never zeros in their place, and no warnings of numpy's."""
    import torch

    for size in (1e8, 1e30):
        folder = tmp_path / str(size)
        model = tiny_checkpoint(folder, "llama")
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(size)
        model.save_pretrained(folder)
        for bits, minimum in ((4, True), (4, False), (8, True)):
            with pytest.raises(ModelError, match="too large to be rounded"):
                pack_path(folder, tmp_path / "packed", bits=bits, minimum=minimum)


FIGURES_OF_FORMAT_5 = (
    "architecture", "layers", "width", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "context", "epsilon",
)  # fmt: skip


def test_folders_of_the_format_before_are_read(tmp_path: Path) -> None:
    """Formats 4 and 5 had fewer kinds and figures of a shape; an unknown format is refused."""
    _, folder = pack_tiny(tmp_path, "llama")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert FORMAT == manifest["format"]
    expected = open_packed(folder).manifest.shape
    before = {key: manifest["shape"][key] for key in FIGURES_OF_FORMAT_5}
    before["frequencies"] = manifest["shape"]["ropes"][0]["frequencies"]
    for number, readable in ((5, True), (4, True), (3, False), (7, False)):
        changed = {**manifest, "format": number, "shape": before}
        (folder / MANIFEST).write_text(json.dumps(changed))
        if readable:
            assert expected == open_packed(folder).manifest.shape
            continue
        with pytest.raises(ModelError, match="pack it again"):
            open_packed(folder)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_checkpoint_in_few_bits_stays_near(tmp_path: Path, bits: int, group: int) -> None:
    """Every matrix of a packed checkpoint is near the original, tied or not."""
    model = tiny_checkpoint(tmp_path / "checkpoint", "llama", tie_word_embeddings=bits == 4)
    pack_path(tmp_path / "checkpoint", tmp_path / "packed", bits=bits, group=group)
    original = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    error = np.abs(_unpacked(tmp_path / "packed", "layers.0.down") - original).mean() / np.abs(original).mean()
    assert error < (0.12 if bits == 4 else 0.01)
    assert ("head" in open_packed(tmp_path / "packed").manifest.tensors) == (bits == 8)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A NaN is found while packing."""
    import torch

    model = tiny_checkpoint(tmp_path / "checkpoint", "llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path / "checkpoint")
    for bits in (None, 4):
        with pytest.raises(ModelError, match="not finite"):
            pack_path(tmp_path / "checkpoint", tmp_path / "packed", bits=bits)


def test_the_digest_finds_a_flipped_bit(tmp_path: Path) -> None:
    """verify() passes for what was packed and refuses a single changed byte."""
    _, folder = pack_tiny(tmp_path, "llama")
    open_packed(folder).verify()
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ModelError, match="is not what was packed"):
        open_packed(folder).verify()


def test_damaged_folders_are_refused_with_a_sentence(tmp_path: Path) -> None:
    """Cut short, absurd header length, wrong shapes, foreign JSON: always a ModelError."""
    _, folder = pack_tiny(tmp_path, "llama")
    weights, manifest = (folder / WEIGHTS).read_bytes(), (folder / MANIFEST).read_bytes()
    document = json.loads(manifest)
    for data in (
        b"",
        weights[:7],
        weights[: len(weights) // 2],
        (1 << 30).to_bytes(8, "little") + weights[8:],
        b"\xff" * 500,
    ):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(ModelError):
            open_packed(folder)
    (folder / WEIGHTS).write_bytes(weights)
    changes = [
        ("format", 9),
        ("shape", {}),
        ("shape", {**document["shape"], "layers": 10**9}),
        ("tensors", {}),
        ("tensors", 5),
    ]
    changes += [
        ("shape", {**document["shape"], key: value})
        for key in ("heads", "head_dim", "width")
        for value in (0, -1, 7, "x")
    ]
    changes += [
        ("tensors", {**document["tensors"], "embedding": value})
        for value in ([], ["q4", 1, 1, 5], ["f32", 10**9, 64, 0])
    ]
    for key, value in changes:
        (folder / MANIFEST).write_text(json.dumps({**document, key: value}))
        with pytest.raises(ModelError):
            open_packed(folder)
    for text in ("", "[]", "{", '{"format": 1}', "[" * 100_000):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(ModelError):
            open_packed(folder)
    (folder / MANIFEST).write_bytes(manifest)
    assert 3 == open_packed(folder).manifest.shape.layers


def test_pieces_of_any_size_are_written_in_blocks_of_one(tmp_path: Path) -> None:
    """Pieces of any size become blocks of one; the file is what was given, and the digest is the file's."""
    random = np.random.default_rng(0)
    pieces = [random.bytes(int(size)) for size in (0, 5, 999, 1000, 1001, 12_345, 0, 1)]
    blocks = list(in_blocks(pieces, 1000))
    assert b"".join(blocks) == b"".join(pieces)
    assert {1000} == {len(block) for block in blocks[:-1]}
    infos = {name: TensorInfo(Kind.F32, 1, 300_000, 0) for name in ("one", "two", "three", "four")}
    values = {name: np.full(300_000, index, np.float32).tobytes() for index, name in enumerate(infos)}
    digest = write_weights(tmp_path / WEIGHTS, infos, ((name, [data]) for name, data in values.items()))
    data = (tmp_path / WEIGHTS).read_bytes()
    assert data.endswith(b"".join(values.values()))
    assert "sha256:" + hashlib.sha256(data).hexdigest() == digest


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages")
def test_huge_pages_are_asked_for(tmp_path: Path) -> None:
    """The kernel marks the mapping of the weights as one that may have huge pages (`hg` in smaps)."""
    with open_model(pack_tiny(tmp_path, "llama", bits=4)[1], context=64, blocks=2):
        parts = Path("/proc/self/smaps").read_text().split(str(tmp_path))[1:]
    assert any(" hg " in part.split("VmFlags:")[1].split("\n")[0] + " " for part in parts if WEIGHTS in part[:80])


def test_a_shape_of_random_weights_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--shape smollm2-135m` gives a folder that loads and computes, with the tokenizer of another folder. Its 30
    layers are alike: 2 of them here."""
    assert 30 == shapes.RandomSource("smollm2-135m").shape.layers
    monkeypatch.setitem(shapes._CONFIGS["smollm2-135m"], "num_hidden_layers", 2)
    (tmp_path / "texts").mkdir()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "texts" / "tokenizer.json"))
    pack_shape("smollm2-135m", tmp_path / "packed", texts=tmp_path / "texts")
    assert (tmp_path / "packed" / "tokenizer.json").is_file()
    from edged.engine.backends.native_model import Part

    with open_model(tmp_path / "packed") as model:
        logits = model.step([Part([1, 2, 3], 0, [0])])
    assert (1, 49_152) == logits.shape
    assert np.isfinite(logits).all()
