"""Odd GGUF files load as in llama.cpp, or are refused in one sentence that names what is odd."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.models.formats.gguf import open_gguf
from edged.models.formats.gguf_split import part_paths
from edged.models.packing.gguf_source import QUANTIZED
from edged.models.packing.pack import pack_path
from edged.models.store.locate import locate
from edged.models.store.pull import pull
from edged.models.store.store import Store
from edged.models.tokenizer.texts import read_texts
from tests.models.odd import odd_files, split
from tests.models.odd_kinds import family_files, typed_files
from tests.models.web import quiet
from tests.native.fuzz import compute
from tests.tiny import make_gguf

LOADS = (
    "good", "no template", "ids of -1", "ids of 2^32-1", "lists of equal values", "scores", "scores missing", "split",
)  # fmt: skip
REFUSED = {
    "lists of different values": ("unsupported", "differ in llama.attention.head_count_kv"),
    "an empty list": ("bad_model", "llama.feed_forward_length"),
    "big-endian": ("unsupported", "is big-endian"),
    "Q2_0": ("unsupported", "stored as Q2_0, which this version does not read; use a file quantized as"),
    "Q4_0_4_4": ("unsupported", "stored as Q4_0_4_4"),
    "a type nobody has": ("bad_model", "type 4000000000"),
    "zero dimension": ("bad_model", r"shape \(0, 64\)"),
    "huge dimension": ("bad_model", "shape"),
    "no dimensions": ("bad_model", "0 dimensions"),
    "offset past the end": ("bad_model", "before the end of tensor"),
    "offset of all ones": ("bad_model", "before the end of tensor"),
    "not aligned": ("bad_model", "not aligned"),
    "architecture is a number": ("unsupported", "architecture"),
    "alignment is a text": ("bad_model", "alignment"),
    "layers are a text": ("bad_model", "llama.block_count"),
    "template is a list": ("bad_model", "chat_template"),
    "tokens are numbers": ("bad_model", "tokenizer.ggml.tokens"),
    "token types are texts": ("bad_model", "tokenizer.ggml.token_type"),
    "list of lists": ("bad_model", "type 9"),
    "a value of an unknown type": ("bad_model", "type 99"),
    "endless list": ("bad_model", "too long"),
    "endless text": ("bad_model", "cut short"),
    "version 1": ("unsupported", "version 1"),
    "version 99": ("unsupported", "version 99"),
    "no tensors": ("bad_model", "do not fit"),
    "a tensor is missing": ("bad_model", "blk.0.attn_q.weight"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return odd_files(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return typed_files(folder) | family_files(folder)


def test_every_odd_file_is_expected_to_load_or_not(files: dict[str, Path]) -> None:
    assert {*LOADS, *REFUSED} == files.keys()


def test_an_unknown_type_is_refused_with_all_types_that_run(files: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        open_gguf(files["Q2_0"])
    named = str(caught.value).partition("quantized as ")[2].rstrip(".").replace(" or ", ", ").split(", ")
    assert sorted([*QUANTIZED, "F16", "BF16", "F32"]) == sorted(named)


def used(path: Path, packed: Path) -> None:
    """What loading does with a file."""
    pack_path(path, packed)
    read_texts(path)


@pytest.mark.parametrize("name", LOADS)
def test_odd_files_that_load(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    texts = read_texts(files[name])
    assert texts.codec.vocabulary > 500
    assert (name == "no template") == (texts.template is None)
    assert "q8_0" in pack_path(files[name], tmp_path / "packed").quantization


@pytest.mark.parametrize("name", REFUSED)
def test_odd_files_that_are_refused(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    code, words = REFUSED[name]
    with pytest.raises(ModelError, match=words) as caught:
        used(files[name], tmp_path / "packed")
    assert code == caught.value.code
    assert "\n" not in str(caught.value)


def test_a_split_model_is_the_whole_one(tmp_path: Path) -> None:
    """Whichever of its files is named; its digest is that of all of them."""
    whole = open_gguf(make_gguf(tmp_path / "tiny.gguf", context=64))
    parts = split(tmp_path, "tiny")
    for part in parts:
        joined = open_gguf(part)
        assert whole.metadata == joined.metadata
        assert whole.tensors.keys() == joined.tensors.keys()
        for name in whole.tensors:
            assert np.array_equal(whole.raw(name), joined.raw(name))
    found = [locate(str(part), None, Store(tmp_path / "store")) for part in parts]
    assert 1 == len({one.digest for one in found})
    assert {(parts[0], sum(part.stat().st_size for part in parts))} == {(one.path, one.size) for one in found}
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"\x01")
    assert found[0].digest != locate(str(parts[0]), None, Store(tmp_path / "store")).digest


def test_what_is_wrong_with_a_split_model_is_said(tmp_path: Path) -> None:
    parts = split(tmp_path, "tiny")
    (tmp_path / "other").mkdir()
    other = split(tmp_path / "other", "tiny", count=2)
    parts[2].rename(tmp_path / "kept")
    for source in parts[:2]:
        with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf must lie beside it") as caught:
            locate(str(source), None, Store(tmp_path / "store"))
        assert "missing" == caught.value.code
    with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf must lie beside it"):
        open_gguf(parts[2])
    shutil.copy(other[1], parts[2])
    with pytest.raises(ModelError, match="is not part 3 of the same model"):
        open_gguf(parts[0])
    shutil.copy(parts[1], parts[2])
    with pytest.raises(ModelError, match="is not part 3 of the same model"):
        open_gguf(parts[0])
    alone = tmp_path / "renamed.gguf"
    shutil.copy(parts[0], alone)
    with pytest.raises(ModelError, match="split into 3 files, but its name does not"):
        open_gguf(alone)
    with pytest.raises(ModelError, match="one of 3 files of a model, which the store does not keep"):
        pull(str(parts[0]), Store(tmp_path / "store"), quiet)


def test_every_tiny_file_of_a_type_or_family_is_computed(kinds: dict[str, Path], tmp_path: Path) -> None:
    """What the next test damages is whole before."""
    for number, path in enumerate(kinds.values()):
        pack_path(path, tmp_path / str(number))
        compute(tmp_path / str(number))


@pytest.mark.parametrize(("which", "flips"), [("files", 500), ("kinds", 100)])
def test_no_damage_of_a_file_crashes_or_hangs(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, flips: int
) -> None:
    """Each one cut at 1, 10, 50 and 99.9 %, and flipped bits over all: computed, or refused in one sentence.

    In a process of its own: what ends a process must not end this one.
    """
    files: dict[str, Path] = request.getfixturevalue(which)
    for part in {part for path in files.values() for part in part_paths(path)}:
        shutil.copy(part, tmp_path / part.name)
    command = [sys.executable, "-m", "tests.models.damage_odd", str(tmp_path), str(flips)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ("", 0) == (done.stderr, done.returncode)
    tried, computed = map(int, done.stdout.split())
    assert tried >= flips + 4 * len(files)
    assert 0 < computed < tried
