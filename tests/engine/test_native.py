"""The engine over the native backend: what is chosen, packed by itself, the same tokens in any company."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.core.prompt import Final, Request, Sampling
from edged.engine import Model, load_model
from edged.engine.kernels.build import BuildError
from edged.models.formats.gguf import open_gguf
from edged.models.packing.pack import pack_path
from tests.native.conftest import kernels_missing
from tests.tiny import WORDS, make_gguf

pytestmark = pytest.mark.skipif(kernels_missing() is not None, reason=f"no kernels: {kernels_missing()}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the store, and for what is packed."""
    return tmp_path_factory.mktemp("models")


def load(source: Path, models: Path, backend: str = "auto", **options: object) -> Model:
    return load_model(source, backend, store_root=models, **options)  # type: ignore[arg-type]


def greedy(index: int, rng: random.Random) -> Request:
    """A prompt of 64 words, a third of which begin with the same 40."""
    common = WORDS[:40] if index % 3 == 0 else rng.choices(WORDS, k=40)
    text = " ".join([*common, *rng.choices(WORDS, k=24)])
    return Request(raw=text, sampling=Sampling(temperature=0, max_tokens=16))


def answers(model: Model, requests: list[Request], width: int, order: random.Random) -> list[str]:
    """All answers, with up to `width` at a time, joining in any order and moment."""
    waiting = list(enumerate(requests))
    order.shuffle(waiting)
    texts: dict[int, str] = {}
    running = 0
    while waiting or running:
        while waiting and running < width and (running == 0 or order.random() < 0.5):
            index, request = waiting.pop()
            model.engine.add(str(index), request)
            running += 1
        for key, event in model.engine.step():
            if isinstance(event, Final):
                texts[int(key)] = event.text
                running -= 1
    return [texts[index] for index in range(len(requests))]


def test_numbers_hold_in_any_order(tiny_gguf: Path, models: Path) -> None:
    """200 prompts: the same greedy tokens alone, in any batch, with and without prefix hits, with 1 and 2 threads."""
    rng = random.Random(1)
    requests = [greedy(index, rng) for index in range(200)]
    alone = load(tiny_gguf, models, threads=1, context=256)
    expected = []
    for request in requests:
        final = list(alone.generate(request))[-1]
        assert isinstance(final, Final)
        expected.append(final.text)
    for threads, width in ((1, 8), (2, 3), (2, 12)):
        model = load(tiny_gguf, models, threads=threads, context=256)
        assert expected == answers(model, requests, width, random.Random(threads * width))
    assert expected == answers(model, requests, 12, random.Random(5))  # now with every prefix in the cache


def test_a_shared_beginning_is_computed_once(tiny_gguf: Path, models: Path) -> None:
    """The second prompt says how much of it the cache had."""
    model = load(tiny_gguf, models, threads=1)
    text = " ".join(WORDS)
    cached = []
    for end in ("Tokyo", "France"):
        final = list(model.generate(Request(raw=f"{text} {end}"), Sampling(temperature=0, max_tokens=2)))[-1]
        assert isinstance(final, Final)
        cached.append((final.usage.cached_tokens, final.usage.prompt_tokens))
        assert final.usage.prompt_tokens == len(model.encode(Request(raw=f"{text} {end}")))
    assert 0 == cached[0][0]
    assert cached[1][0] >= cached[1][1] - 33


def test_cached_tokens_are_never_ones_own(tiny_gguf: Path, models: Path) -> None:
    """A prompt that loses its slot half-way finds its own work again; that is no gain from an earlier prompt."""
    model = load(tiny_gguf, models, threads=1)
    model.backend.slots = 1  # type: ignore[misc]
    engine = model.engine
    engine.add("long", Request(raw=" ".join(WORDS * 12), sampling=Sampling(temperature=0, max_tokens=2)))
    for _ in range(3):
        engine.step()
    engine.add("first", Request(raw="hi", priority=0, sampling=Sampling(temperature=0, max_tokens=2)))
    finals = {}
    while engine.busy:
        finals |= {key: event for key, event in engine.step() if isinstance(event, Final)}
    assert finals["long"].usage.prompt_tokens > 600
    assert 0 == finals["long"].usage.cached_tokens


def test_prompts_that_arrive_together_share_the_work(tiny_gguf: Path, models: Path) -> None:
    """Eight at once with the same 600 tokens in front: those are computed once, in turns."""
    model = load(tiny_gguf, models, threads=1)
    sampling = Sampling(temperature=0, max_tokens=2)
    text = " ".join(WORDS * 8)
    generators = [model.generate(Request(raw=f"{text} {end}"), sampling) for end in WORDS[:8]]
    finals = [list(generator)[-1] for generator in generators]
    computed = [final.usage.prompt_tokens - final.usage.cached_tokens for final in finals]
    assert sum(computed) < finals[0].usage.prompt_tokens + 8 * 40
    alone = load(tiny_gguf, models, threads=1)
    assert [final.text for final in finals] == [
        list(alone.generate(Request(raw=f"{text} {end}"), sampling))[-1].text for end in WORDS[:8]
    ]


def test_what_is_loaded_says_how(tiny_gguf: Path, tiny_checkpoint: Path, models: Path) -> None:
    """A GGUF file keeps its bits, a checkpoint gets 4 (8 in head and embedding) or those that are asked for; a packed
    folder is what it is."""
    of_gguf = load(tiny_gguf, models).info
    assert ("native", "q8_0", "", "llama") == (
        of_gguf.backend,
        of_gguf.quantization,
        of_gguf.fallback,
        of_gguf.architecture,
    )
    assert {"q4_byte_min", "q8_0"} == set(load(tiny_checkpoint, models).info.quantization.split(", "))
    assert "q8_0" == load(tiny_checkpoint, models, bits=8).info.quantization
    pack_path(tiny_gguf, models / "own")
    own = load(models / "own", models)
    assert ("native", "q8_0", "llama") == (own.info.backend, own.info.quantization, own.info.architecture)
    assert np.array_equal(own.logits([5, 6, 7]), load(tiny_gguf, models).logits([5, 6, 7]))
    with pytest.raises(ModelError, match="reads no packed folders"):
        load(models / "own", models, "torch")
    with pytest.raises(ModelError, match="are quantized already"):
        load(models / "own", models, bits=4)


def test_p06_packed_bytes_are_verified_and_made_again(tiny_gguf: Path, tmp_path: Path) -> None:
    """A flipped bit, a cut file, a lost manifest: packed anew. In a folder that was named itself: refused."""
    expected = load(tiny_gguf, tmp_path).logits([5, 6, 7])
    (folder,) = tmp_path.glob("packed/[!.]*")
    weights = (folder / "model.safetensors").read_bytes()
    flipped = bytearray(weights)
    flipped[len(flipped) // 2] ^= 1
    for name, damaged in (
        ("model.safetensors", bytes(flipped)),
        ("model.safetensors", weights[:-100]),
        ("manifest.json", b"{}"),
    ):
        (folder / name).write_bytes(damaged)
        assert np.array_equal(expected, load(tiny_gguf, tmp_path).logits([5, 6, 7]))
        assert weights == (folder / "model.safetensors").read_bytes()
    shutil.copytree(folder, tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").write_bytes(flipped)
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "own", tmp_path)
    assert "tampered" == caught.value.code


def test_p06_a_file_that_was_not_packed_is_not_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer or template put beside the packed files would change what the pinned digest covers."""
    pack_path(tiny_checkpoint, tmp_path / "own", bits=8)
    digest = load(tmp_path / "own", tmp_path).info.digest
    (tmp_path / "own" / "chat_template.jinja").write_text("EVIL {{ messages[0].content }}")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "own", tmp_path, digest=digest)
    assert "tampered" == caught.value.code


def test_biases_of_a_llama_are_computed(tiny_gguf: Path, tmp_path: Path) -> None:
    """Those of attention, of its output and of the ffn: other logits than without, and torch's."""
    path = tmp_path / "other.gguf"
    sizes = {
        "attn_q": 64,
        "attn_k": 32,
        "attn_v": 32,
        "attn_output": 64,
        "ffn_gate": 128,
        "ffn_up": 128,
        "ffn_down": 64,
    }
    random = np.random.default_rng(2)
    bias = {
        f"blk.{layer}.{part}.bias": random.standard_normal(size).astype(np.float32)
        for layer in (0, 1)
        for part, size in sizes.items()
    }
    rewrite(tiny_gguf, path, "llama", bias)
    tokens = list(range(5, 60))
    native, of_torch = (load(path, tmp_path, backend).logits(tokens) for backend in ("native", "torch"))
    assert np.abs(native - of_torch).max() < 0.06 * np.abs(of_torch).max()  # activations are rounded to 8 bits
    assert np.abs(native - load(tiny_gguf, tmp_path).logits(tokens)).max() > 0.1 * np.abs(of_torch).max()


def test_tensors_that_are_missing_go_to_torch(tiny_gguf: Path, tmp_path: Path) -> None:
    """A Qwen2 without attention biases: computing on without a word would be another model."""
    path = tmp_path / "other.gguf"
    rewrite(tiny_gguf, path, "qwen2", {})
    with pytest.raises(ModelError, match="lacks the attention") as caught:
        load(path, tmp_path, "native")
    assert "unsupported" == caught.value.code
    info = load(path, tmp_path).info
    assert ("torch", True) == (info.backend, bool(info.fallback))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.freq_base", "fast"),
        ("llama.rope.scaling.type", ["linear"]),
        ("llama.rope.scaling.factor", "two"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("general.architecture", ["llama"]),
        ("llama.context_length", 1 << 63),
    ],
)
def test_metadata_of_the_wrong_kind_is_refused(tiny_gguf: Path, tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "odd.gguf"
    more = {"llama.rope.scaling.type": "linear"} if key.endswith("factor") else {}
    rewrite(tiny_gguf, path, "llama", {}, {**more, key: value})
    # transformers, behind torch, makes an architecture even of a list.
    for backend in ("native",) if key == "general.architecture" else ("native", "torch"):
        with pytest.raises(ModelError) as caught:
            load(path, tmp_path, backend)
        assert caught.value.code in {"bad_model", "unsupported"}


def test_huge_numbers_in_metadata_are_kept(tiny_gguf: Path, tmp_path: Path) -> None:
    """What means nothing to us may be any number."""
    rewrite(tiny_gguf, tmp_path / "odd.gguf", "llama", {}, {"general.serial": (1 << 64) - 1})
    assert "native" == load(tmp_path / "odd.gguf", tmp_path).info.backend


def rewrite(
    source: Path,
    target: Path,
    architecture: str,
    tensors: dict[str, np.ndarray],
    metadata: dict[str, object] | None = None,
) -> None:
    """The same model with other metadata, under another architecture's name, with more tensors."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    kinds = {
        str: GGUFValueType.STRING,
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT64,
        float: GGUFValueType.FLOAT64,
        list: GGUFValueType.ARRAY,
    }
    file = open_gguf(source)
    items = {key.replace("llama.", f"{architecture}.", 1): value for key, value in file.metadata.items()}
    writer = GGUFWriter(str(target), architecture)
    for key, value in {**items, "general.architecture": architecture, **(metadata or {})}.items():
        writer.kv_data[0].pop(key, None)
        within = kinds[type(value[0])] if isinstance(value, list) else None
        writer.add_key_value(key, value, kinds[type(value)], sub_type=within)
    for tensor in file.tensors.values():
        raw = file.raw(tensor.name)
        rows = raw.view(np.float32) if tensor.type == "F32" else raw.reshape(tensor.shape[0], -1)
        writer.add_tensor(
            tensor.name, rows, raw_dtype=None if tensor.type == "F32" else GGMLQuantizationType[tensor.type]
        )
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_it_cannot_run_goes_to_torch_and_says_so(
    tiny_gguf: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels, too. A backend that is asked for by name is never replaced."""
    said: list[str] = []

    def none() -> None:
        raise BuildError("no C++ compiler was found")

    monkeypatch.setattr("edged.engine.backends.native_open.load_library", none)
    info = load(tiny_gguf, models, on_progress=said.append).info
    assert "torch" == info.backend
    assert "no C++ compiler" in info.fallback
    assert any("using the torch backend" in words for words in said)
    with pytest.raises(ModelError, match="no C\\+\\+ compiler"):
        load(tiny_gguf, models, "native")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"-m pip install '.*\[torch\]'"):
        load(tiny_gguf, models)


def test_serving_imports_no_torch(tmp_path: Path) -> None:
    """From a GGUF file that was never packed to an answer: neither torch nor transformers."""
    path = make_gguf(tmp_path / "tiny.gguf", seed=3)
    code = (
        "import sys; from edged.engine import load_model; from pathlib import Path\n"
        f"m = load_model({str(path)!r}, store_root=Path({str(tmp_path)!r}), threads=1)\n"
        "print(list(m.generate('hi'))[-1].reason, m.info.backend)\n"
        "sys.exit(bool({'torch', 'transformers', 'optimum'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, ["native"]) == (result.returncode, result.stdout.split()[1:]), result.stderr
