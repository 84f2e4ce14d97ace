"""GGUF files and checkpoint folders: what is whole is read, what is not is refused with a sentence."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.models.formats.checkpoint import check_folder, read_headers
from edged.models.formats.gguf import open_gguf
from edged.models.store.locate import locate
from edged.models.store.store import Store


def test_reads_what_the_gguf_package_reads(tiny_gguf: Path) -> None:
    from gguf import GGUFReader, dequantize

    ours, theirs = open_gguf(tiny_gguf), GGUFReader(tiny_gguf)
    for field in theirs.fields.values():
        if not field.name.startswith("GGUF."):
            assert field.contents() == ours.metadata[field.name]
    assert {tensor.name for tensor in theirs.tensors} == set(ours.tensors)
    for tensor in theirs.tensors:
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(expected.reshape(ours.tensors[tensor.name].shape), ours.dequantize(tensor.name))
    assert "q8_0" == ours.quantization()


def test_every_truncation_is_found(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [0, 1, 3, 4, 8, 23, 24, 100, 1000, 10_000, len(data) // 2, len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            open_gguf(cut)
        assert "bad_model" == caught.value.code


def test_no_damage_in_the_head_gives_another_error(tiny_gguf: Path, tmp_path: Path) -> None:
    """Bytes changed at random: read anyway, or ModelError; never anything else, never slow."""
    data, rng = bytearray(tiny_gguf.read_bytes()), random.Random(1)
    path = tmp_path / "bent.gguf"
    refused = 0
    for _ in range(150):
        bent = bytearray(data)
        for _ in range(3):
            bent[rng.randrange(12_000)] = rng.randrange(256)
        path.write_bytes(bent)
        try:
            file = open_gguf(path)
            for name in list(file.tensors)[:2]:
                file.dequantize(name)
        except ModelError:
            refused += 1
    assert 0 < refused < 150


def test_impossible_counts(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    for tensors, keys in ((1 << 60, 1), (1, 1 << 60)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"\0" * 64)
        with pytest.raises(ModelError, match="fetch the model again"):
            open_gguf(path)


def checkpoint(folder: Path, tensors: dict[str, tuple[int, ...]] | None = None, **config: object) -> Path:
    """A folder with a config, and a safetensors file of float32 zeros."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    header, at = {}, 0
    for name, shape in (tensors or {"a": (2, 3)}).items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * at)
    return folder


def test_a_good_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"a": (2, 3), "b": (4,)})
    check_folder(folder)
    assert {"a": (2, 3), "b": (4,)} == read_headers(folder)


def test_what_is_refused_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="auto_map") as caught:
        check_folder(checkpoint(tmp_path / "code", auto_map={"AutoModel": "evil.py"}))
    assert "unsupported" == caught.value.code

    pickled = checkpoint(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled") as caught:
        check_folder(pickled)
    assert "unsupported" == caught.value.code

    with pytest.raises(ModelError, match="not a checkpoint folder"):
        check_folder(tmp_path)

    for index, change in enumerate((b"", b"\xff" * 8, struct.pack("<Q", 1 << 40), struct.pack("<Q", 4) + b"null")):
        folder = checkpoint(tmp_path / f"broken{index}")
        (folder / "model.safetensors").write_bytes(change + b"\0" * 20)
        with pytest.raises(ModelError, match="safetensors") as caught:
            check_folder(folder)
        assert "bad_model" == caught.value.code

    short = checkpoint(tmp_path / "short")
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut short"):
        check_folder(short)

    strange = checkpoint(tmp_path / "strange")
    (strange / "config.json").write_text("[1, 2")
    with pytest.raises(ModelError, match=r"config\.json"):
        check_folder(strange)


def test_locate_on_this_disk(tiny_gguf: Path, tmp_path: Path) -> None:
    """A path is found, hashed and held against the configured digest."""
    store = Store(tmp_path / "store")
    found = locate(str(tiny_gguf), None, store)
    assert ("gguf", tiny_gguf.stat().st_size) == (found.format, found.size)
    assert found == locate(str(tiny_gguf), found.digest, store)
    with pytest.raises(ModelError, match=r"model\.digest") as caught:
        locate(str(tiny_gguf), "sha256:" + "0" * 64, store)
    assert "tampered" == caught.value.code
    for source in ("smollm2-135m-instruct", "hf:a/b", "sha256:" + "1" * 64, "no/such/file.gguf"):
        with pytest.raises(ModelError) as caught:
            locate(source, None, store)
        assert "missing" == caught.value.code
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    with pytest.raises(ModelError) as caught:
        locate(str(other), None, store)
    assert "unsupported" == caught.value.code
