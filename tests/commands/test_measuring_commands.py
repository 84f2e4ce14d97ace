"""`edged pack`, `bench` and `eval` as people type them, on tiny models."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from edged.commands.main import main
from edged.core.errors import ModelError
from edged.measure import bench
from edged.measure.random_gguf import write_random_gguf
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import open_packed
from edged.models.packing.pack import open_source, pack
from edged.models.store.locate import locate
from edged.models.store.store import Store
from tests.native.conftest import kernels_missing
from tests.tiny import WORDS, make_checkpoint, make_gguf

pytestmark = pytest.mark.skipif(kernels_missing() is not None, reason=f"no kernels: {kernels_missing()}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("measure")
    make_gguf(made / "tiny.gguf", context=4224)  # all that bench measures fits
    return made


def edged(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGED_STATE_DIR": str(folder)}
    command = [sys.executable, "-m", "edged", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def document(result: subprocess.CompletedProcess[str]) -> dict:
    assert 0 == result.returncode, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_pack_a_file_and_serve_it(folder: Path) -> None:
    """The packed folder is a model; a second pack into it is refused, and so are words that do not fit."""
    packed = document(edged(folder, "pack", str(folder / "tiny.gguf"), str(folder / "packed"), "--json"))
    assert ("q8_0", True) == (packed["quantization"], packed["digest"].startswith("sha256:"))
    answer = document(edged(folder, "generate", str(folder / "packed"), "hi", "--max-tokens", "4", "--json"))
    assert (4, "q8_0") == (answer["usage"]["completion_tokens"], answer["quantization"])
    for words, said in (
        (("pack", str(folder / "tiny.gguf"), str(folder / "packed")), "exists already"),
        (("pack", str(folder / "packed"), str(folder / "again")), "packed already"),
        (("pack", str(folder / "tiny.gguf")), "takes SOURCE DEST"),
        (("pack", "--shape", "gpt-9", str(folder / "again")), "There is no shape gpt-9"),
        (("pack", "--shape", "smollm2-135m", "--tokenizer", str(folder), str(folder / "again")), "no tokenizer.json"),
        (("pack", "--tokenizer", str(folder), str(folder / "tiny.gguf"), str(folder / "again")), "goes with --shape"),
    ):
        result = edged(folder, *words)
        assert result.returncode in {1, 2}
        assert said in result.stderr
        assert 1 == len(result.stderr.strip().splitlines())


def test_pack_a_checkpoint_with_bits_and_group(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    packed = document(
        edged(
            tmp_path,
            "pack",
            str(tmp_path / "checkpoint"),
            str(tmp_path / "p"),
            "--bits",
            "8",
            "--group",
            "64",
            "--json",
        )
    )
    assert "q8_0" == packed["quantization"]
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert {64} == {group for kind, _, _, group in manifest["tensors"].values() if kind == "q8"}
    scale_only = edged(tmp_path, "pack", str(tmp_path / "checkpoint"), str(tmp_path / "s"), "--scale-only", "--json")
    assert {"q4_byte", "q8_0"} == set(document(scale_only)["quantization"].split(", "))
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert {"embedding", "head"} == {name for name, (kind, *_) in manifest["tensors"].items() if kind == "q8"}
    small = edged(tmp_path, "pack", str(tmp_path / "checkpoint"), str(tmp_path / "h"), "--head-bits", "4", "--json")
    assert "q4_byte_min" == document(small)["quantization"]
    refused = edged(tmp_path, "pack", str(tmp_path / "checkpoint"), str(tmp_path / "r"), "--bits", "8", "--scale-only")
    assert (2, True) == (refused.returncode, "--scale-only: goes with --bits 4" in refused.stderr), refused.stderr


def test_bench_measures_every_case(folder: Path) -> None:
    """With a picture, and a stand-in for llama-bench as the peer: what is asked of it is paired with ours."""
    stand_in = folder / "llama-bench"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json\n"
        "print(json.dumps([{'avg_ts': 0.5, 'build_commit': 'abc', 'cpu_info': 'a processor'}]))\n"
    )
    stand_in.chmod(0o755)
    words = ("bench", str(folder / "tiny.gguf"), "--rounds", "2", "--threads", "1", "--json", "--peer", "llama.cpp")
    found = document(edged(folder, *words, "--llama-bench", str(stand_in), "--plot", str(folder / "plot.svg")))
    cases = {case["name"]: case for case in found["cases"]}
    assert {"decode", "prefill 128", "prefill 512", "prefill 2048", "decode × 16", "first token, cold"} <= cases.keys()
    assert "%" == cases["kept behind 4096 of 128"]["unit"]
    assert all(case["value"] > 0 for case in cases.values())
    assert 0.5 == cases["decode"]["peer"]
    assert len(cases["decode"]["ratios"]) == len(cases) - 2  # one before each other case but the step outside the model
    assert 2 == len(cases["prefill 128"]["ratios"])
    assert "peer" not in cases["decode × 16"]
    assert "llama-bench abc" == found["peer"]["name"]
    assert 0 < found["fraction_of_limit"]
    assert pytest.approx(found["limit_tokens_per_second"] / 0.5) == found["limit_over_peer"]
    assert 0 <= found["huge_pages"] <= 1
    assert found["memory"]["above"] > 10_000_000
    drawn = ET.fromstring((folder / "plot.svg").read_text())
    tops = [float(bar.get("y", "nan")) for bar in drawn.iter("{http://www.w3.org/2000/svg}rect")][
        1:
    ]  # the first is the background
    assert len(tops) > 8
    assert all(below - above >= 20 for above, below in itertools.pairwise(tops)), tops
    assert tops[-1] + 16 < float(drawn.get("height", "nan"))


@pytest.mark.parametrize("tokenizer", [True, False])
def test_bench_counts_memory_of_whatever_takes_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: bool
) -> None:
    """Also of random weights, whose folder has a shape's name, where a tokenizer was packed with them."""
    counted: list[str] = []
    pack(open_source(make_gguf(tmp_path / "m.gguf")), tmp_path / "p", bits=None, source_digest="sha256:0")
    packed = open_packed(tmp_path / "p")
    files = {name: digest for name, digest in packed.manifest.files.items() if tokenizer or "tokenizer" not in name}
    packed.manifest = replace(packed.manifest, name="qwen2.5-0.5b", files=files)

    def stop(*_: object) -> None:
        raise ModelError("stop", "that is all that the test asks")

    monkeypatch.setattr(bench, "footprint", lambda source, *_: counted.append(source))
    monkeypatch.setattr("edged.measure.speed.open_for_bench", stop)
    found = locate(str(tmp_path / "p"), None, Store(tmp_path))
    with pytest.raises(ModelError, match="that is all"):
        bench.bench(
            found, packed, tmp_path, threads=1, rounds=1, kernels="auto", peer=None, work=tmp_path, progress=print
        )
    assert counted == ([str(found.path)] if tokenizer else [])


def test_bench_that_cannot_write_its_picture_tells_what_it_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there is refused before anything is measured."""
    measured = bench.Result({"model": "m", "quantization": "q4_1", "threads": 1, "kernels": "none"})
    monkeypatch.setenv("EDGED_STATE_DIR", str(folder))
    monkeypatch.setattr("edged.commands.bench.bench", lambda *_, **__: measured)
    words = ["bench", str(folder / "tiny.gguf"), "--json", "--plot"]
    assert 1 == main([*words, str(folder)])
    captured = capsys.readouterr()
    assert "m" == json.loads(captured.out)["model"]
    assert f"{folder} cannot be written (Is a directory)" in captured.err
    assert 2 == main([*words, str(folder / "nowhere" / "plot.svg")])
    captured = capsys.readouterr()
    assert "" == captured.out
    assert f"--plot: there is no folder {folder / 'nowhere'}" in captured.err


def test_bench_says_what_is_missing(folder: Path) -> None:
    result = edged(folder, "bench", str(folder / "tiny.gguf"), "--peer", "llama.cpp", "--peer-python", "/no/python")
    assert 1 == result.returncode
    assert "/no/python cannot be started" in result.stderr
    result = edged(folder, "bench", "nothing")
    assert (1, True) == (result.returncode, "There is no model nothing" in result.stderr)


def test_eval_against_a_reference(folder: Path) -> None:
    """The 8-bit file against its own values in float32: nearly the same, and not exactly."""
    text = folder / "text.txt"
    text.write_text(" ".join(WORDS[index * 7 % len(WORDS)] for index in range(600)))
    words = ("eval", str(folder / "tiny.gguf"), str(text), "--window", "64")
    found = document(edged(folder, *words, "--reference", str(folder / "tiny.gguf"), "--json"))
    reference, model = found["models"]
    assert "torch" in reference["name"]
    assert "native" in model["name"]
    assert 0 < model["kl"]["value"] < 0.05
    assert model["top1"]["value"] > 0.9
    assert abs(model["ratio"]["value"] - 1) < 0.05
    assert model["kl"]["low"] <= model["kl"]["value"] <= model["kl"]["high"]
    shown = edged(folder, *words)
    assert 0 == shown.returncode
    assert "perplexity" in shown.stdout
    short = edged(folder, "eval", str(folder / "tiny.gguf"), str(text), "--window", "4000")
    assert (1, True) == (short.returncode, "give a longer one" in short.stderr)
    assert 1 == edged(folder, "eval", str(folder / "tiny.gguf"), "/no/file").returncode


def test_random_weights_for_a_peer(tmp_path: Path) -> None:
    """A whole GGUF file with every tensor of the shape in the wished type."""
    file = open_gguf(write_random_gguf("smollm2-135m", tmp_path / "peer.gguf", 4))
    assert {"Q4_0", "F32"} == {tensor.type for tensor in file.tensors.values()}
    assert (576, 1536) == file.tensors["blk.29.ffn_down.weight"].shape
    assert pytest.approx(1e5, rel=1e-3) == file.get("llama.rope.freq_base")
