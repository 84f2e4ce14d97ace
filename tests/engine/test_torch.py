"""The torch backend: the same numbers as transformers, honest words, refusals before anything large is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Chunk, Final, Request, Sampling, Turn
from edged.engine import Model, load_model
from edged.engine.backends.base import ComputeError, Slice
from edged.engine.memory import MAX_SLOTS, admit

GREEDY = Sampling(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Model:
    return load_model(tiny_gguf, "torch", threads=1)


def final(model: Model, prompt: str | Request, sampling: Sampling | None = None) -> Final:
    *chunks, last = model.generate(prompt, sampling)
    assert isinstance(last, Final)
    assert last.text == "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
    return last


def test_importing_the_engine_imports_no_torch() -> None:
    loaded = "bool({'torch', 'transformers'} & sys.modules.keys())"
    code = f"import sys, edged.engine, edged.models.store.pull; sys.exit({loaded})"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_info(model: Model, tiny_gguf: Path) -> None:
    info = model.info
    assert ("tiny.gguf", "llama", "torch", "float32 (from q8_0)") == (
        info.name,
        info.architecture,
        info.backend,
        info.quantization,
    )
    assert (2048, MAX_SLOTS) == (info.context, info.slots)
    assert info.digest.startswith("sha256:")
    assert info.weights_bytes > 100_000
    assert 100 == load_model(tiny_gguf, "torch", context=100).info.context
    assert 2048 == load_model(tiny_gguf, "torch", context=10**6).info.context  # no more than it was trained for


def test_logits_of_a_chunk_are_those_of_single_tokens(model: Model) -> None:
    tokens = [5 + index * 7 % 300 for index in range(600)]
    whole = model.logits(tokens)
    assert (np.float32, (600, model.codec.vocabulary)) == (whole.dtype, whole.shape)
    assert np.abs(model.logits(tokens[:10]) - whole[:10]).max() < 1e-4
    assert np.abs(one_by_one(model, tokens[:50]) - whole[:50]).max() < 1e-4


def one_by_one(model: Model, tokens: list[int]) -> np.ndarray:
    """The logits after each token, computed through the cache as decoding does: float32 [tokens, vocabulary]."""
    backend = model.backend
    slot = backend.open()
    rows = [backend.run([Slice(slot, index, [token])])[0] for index, token in enumerate(tokens)]
    with pytest.raises(ComputeError, match="takes none"):  # no slice had a draft, so none can be kept
        backend.keep(slot, 1)
    backend.close(slot)
    return np.concatenate([row for row in rows if isinstance(row, np.ndarray)])


@pytest.mark.parametrize("tokens", [[], [-1], [10**6], [1] * 3000])
def test_logits_refuse(model: Model, tokens: list[int]) -> None:
    with pytest.raises(PromptRefused):
        model.logits(tokens)


def test_the_same_seed_the_same_text(model: Model) -> None:
    sampling = Sampling(temperature=1.0, seed=11, max_tokens=60)
    first = final(model, "Hello", sampling)
    others = [model.generate(f"Hello {index}", Sampling(temperature=1.0, max_tokens=200)) for index in range(3)]
    for other in others:
        next(other)
    assert first.text == final(model, "Hello", sampling).text  # in company
    assert first.text != final(model, "Hello", Sampling(temperature=1.0, seed=12, max_tokens=60)).text
    for other in others:
        other.close()
    model.engine.step()
    assert not model.engine.busy


def test_preemption_gives_the_same_greedy_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots for six sequences: caches are dropped and computed again, the texts stay."""
    sampling = Sampling(temperature=0, max_tokens=100)
    expected = [final(model, f"Tell {index}", sampling).text for index in range(6)]
    monkeypatch.setattr(model.engine._backend, "slots", 2)
    generators = [model.generate(f"Tell {index}", sampling) for index in range(6)]
    assert expected == [list(generator)[-1].text for generator in generators]


def test_kinds_of_prompts(model: Model) -> None:
    turns = (Turn("user", "hi"),)
    assert final(model, "hi", GREEDY).text == final(model, Request(turns=turns, sampling=GREEDY)).text
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert final(model, "hi", GREEDY).text == final(model, Request(raw=text), GREEDY).text
    assert 40 == final(model, "hi", GREEDY).usage.completion_tokens


def test_p07_memory_is_admitted_before_it_is_used(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.engine.load.available_bytes", lambda: 90_000_000)
    with pytest.raises(ModelError, match=r"needs [\d,]+ MB .* but 90 MB are free") as caught:
        load_model(tiny_gguf, "torch")
    assert "no_memory" == caught.value.code
    assert 1 == admit(10**9, 10**8, 10**9 + 2 * 10**8).slots
    assert 4 == admit(10**9, 10**8, 10**9 + 6 * 10**8).slots
    assert MAX_SLOTS == admit(1, 1, 10**10).slots


def test_what_is_not_supported_says_so(tiny_gguf: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"backend": "torch", "bits": 4}, "4 bits are for the native engine"),
        ({"backend": "torch", "bits": 8}, "keeps its own quantization"),
        ({"backend": "onnx"}, "no backend 'onnx'"),
    ]
    for options, words in cases:
        with pytest.raises(ModelError, match=words) as caught:
            load_model(tiny_gguf, **options)  # type: ignore[arg-type]
        assert "unsupported" == caught.value.code


def test_damaged_weights_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1000])
    with pytest.raises(ModelError) as caught:
        load_model(cut, "torch")
    assert "bad_model" == caught.value.code


def test_a_checkpoint_in_8_bits(tiny_checkpoint: Path) -> None:
    """A folder is rounded to 8 bits, says so, and computes nearly what transformers computes without rounding."""
    import torch
    from transformers import AutoModelForCausalLM

    rounded = load_model(tiny_checkpoint, "torch", threads=1)
    assert "qint8, head float32 (from float32)" == rounded.info.quantization
    assert 512 == rounded.info.context
    whole = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    assert rounded.info.weights_bytes < sum(4 * weight.numel() for weight in whole.parameters())
    tokens = [5 + index * 7 % 300 for index in range(300)]
    with torch.no_grad():
        expected = whole(torch.tensor([tokens])).logits[0].numpy()
    assert np.corrcoef(rounded.logits(tokens).ravel(), expected.ravel())[0, 1] > 0.99


def test_a_checkpoint_as_a_reference_is_not_rounded(tiny_checkpoint: Path) -> None:
    """`exact` computes in float32 what transformers computes."""
    import torch
    from transformers import AutoModelForCausalLM

    exact = load_model(tiny_checkpoint, "torch", threads=1, exact=True)
    assert "float32 (from float32)" == exact.info.quantization
    tokens = [5 + index * 7 % 300 for index in range(100)]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)(torch.tensor([tokens]))
    assert exact.logits(tokens) == pytest.approx(expected.logits[0].numpy(), abs=1e-4)


def test_a_checkpoint_that_lacks_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights") as caught:
        load_model(folder, "torch")
    assert "bad_model" == caught.value.code
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "klingon", "architectures": ["Klingon"]}))
    with pytest.raises(ModelError) as caught:
        load_model(folder, "torch")
    assert "unsupported" == caught.value.code


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], **figures: object
) -> Path:
    """A GGUF file of another architecture with the tokenizer of a tiny one, in float32."""
    from gguf import GGUFWriter

    from edged.models.formats.gguf import open_gguf

    file = open_gguf(source)
    architecture = str(figures.pop("architecture"))
    writer = GGUFWriter(str(target), architecture)
    for key, value in file.metadata.items():
        if key.startswith("llama."):
            key = key.replace("llama", architecture)  # noqa: PLW2901
        if key == "general.architecture" or key in figures:
            continue
        add(writer, key, value)
    for key, value in figures.items():
        add(writer, key.replace("__", "."), value)
    for name, values in change({name: file.dequantize(name) for name in file.tensors}).items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def add(writer: object, key: str, value: object) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_family_computes_what_transformers_computes(architecture: str, tiny_gguf: Path, tmp_path: Path) -> None:
    """The forward pass and the reading of weights against transformers' own, for each kind that is written out."""
    pytest.importorskip("accelerate")  # transformers reads GGUF files with it
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    random = np.random.default_rng(5)

    def change(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for layer in range(2):
            for name, size in (("q", 64), ("k", 32), ("v", 32)):
                if architecture == "qwen2":
                    weights[f"blk.{layer}.attn_{name}.bias"] = random.standard_normal(size).astype(np.float32)
                if architecture == "qwen3" and name != "v":
                    weights[f"blk.{layer}.attn_{name}_norm.weight"] = random.random(16).astype(np.float32) + 0.5
        if architecture == "qwen3":
            del weights["output.weight"]  # tied
        return weights

    figures = {f"{architecture}.attention.key_length": 16, f"{architecture}.attention.value_length": 16}
    path = rewritten(tiny_gguf, tmp_path / f"{architecture}.gguf", change, architecture=architecture, **figures)
    tokens = [5 + index * 7 % 300 for index in range(300)]
    ours = load_model(path, "torch").logits(tokens)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    config.head_dim = 16  # transformers does not read it for all of them
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32, config=config)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(ours - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_the_real_file_computes_what_transformers_computes(real_gguf: Path) -> None:
    """bfloat16 weights against float32: the same best token nearly everywhere, small divergence."""
    pytest.importorskip("accelerate")  # transformers reads GGUF files with it
    import torch
    from transformers import AutoModelForCausalLM

    model = load_model(real_gguf, "torch", context=512)
    text = (
        "The capital of Japan is Tokyo. It has 14 million inhabitants, and its history goes back to the year 1457. " * 6
    )
    tokens = model.codec.encode(text, specials=False)[:200]
    theirs = AutoModelForCausalLM.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].double().numpy()
    log_p = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
    for way, logits in (("as a prompt", model.logits(tokens)), ("token by token", one_by_one(model, tokens))):
        ours = logits.astype(np.float64)
        log_q = ours - np.logaddexp.reduce(ours, axis=1, keepdims=True)
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
        agreement = (ours.argmax(1) == expected.argmax(1)).mean()
        print(f"{way}: mean KL {divergence:.5f}, top-1 {agreement:.3f}")
        assert divergence < 0.002
        assert agreement > 0.96


@pytest.mark.real_model
def test_the_capital_of_japan(real_gguf: Path) -> None:
    model = load_model(real_gguf, "torch", context=512, threads=2)
    assert "bfloat16 (from q4_1)" == model.info.quantization
    answer = final(model, "What is the capital of Japan?", GREEDY)
    assert "Tokyo" in answer.text
    assert "stop" == answer.reason
    assert final(model, "What is the capital of Japan?", GREEDY).text == answer.text
