"""Vectors of texts, beside answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Chunk, Final, Request, Started
from edged.engine.engine import Engine
from edged.models.formats.gguf_metadata import write_metadata
from edged.models.formats.pooling import MEAN, Pooling, pooling_of
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import FakeBackend, finals
from tests.engine.running import drain_loose, raw


def expected(tokens: list[int], kind: str) -> list[float]:
    rows = np.array([[token, at] for at, token in enumerate(tokens)], float)
    found = rows[-1] if kind == "last" else rows.mean(0)
    return (found / np.linalg.norm(found)).tolist()


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_a_vector_is_pooled_over_all_chunks_and_has_the_length_one(
    engine: Engine, codec: TextCodec, kind: str, backend: FakeBackend
) -> None:
    engine._embeddings.pooling = Pooling(kind)  # type: ignore[arg-type]
    texts = ("a", "hello " * 80)
    engine.add("a", Request(embed=texts))
    started, final = drain_loose(engine)["a"]
    assert Started() == started
    assert isinstance(final, Final)
    assert final.embedding is not None
    assert ("stop", "", kind) == (final.reason, final.text, final.embedding.pooling)
    tokens = [codec.begun(codec.encode(text, specials=False)) for text in texts]
    assert sum(map(len, tokens)) == final.usage.prompt_tokens
    assert len(tokens[1]) > 256
    for vector, ids in zip(final.embedding.vectors, tokens, strict=True):
        assert np.allclose(expected(ids, kind), vector, atol=1e-6)
    assert {} == backend.caches


def test_answers_go_on_while_a_long_text_is_computed(engine: Engine, backend: FakeBackend) -> None:
    engine.add("answer", raw("x", max_tokens=40))
    for _ in range(3):
        engine.step()
    engine.add("vector", Request(embed=("8" * 500,)))
    while engine._embeddings.busy:
        keys = [key for key, event in engine.step() if isinstance(event, Chunk)]
        assert ["answer"] == keys[:1]
    assert max(map(max, backend.log)) <= 64


def test_what_is_more_urgent_comes_first(engine: Engine) -> None:
    engine.add("later", Request(embed=("8" * 300,)), level=9)
    engine.add("answer", raw("x", max_tokens=5), level=0)
    engine.add("first", Request(embed=("a",)), level=1)
    order = []
    while engine.busy:
        order += [key for key, event in engine.step() if isinstance(event, Final)]
    assert ["first", "answer", "later"] == order


def test_a_cancelled_one_ends_without_vectors(engine: Engine, backend: FakeBackend) -> None:
    engine.add("a", Request(embed=("8" * 500,)))
    for _ in range(2):
        engine.step()
    engine.cancel("a")
    final = finals(engine)["a"]
    assert ("cancelled", None) == (final.reason, final.embedding)
    assert {} == backend.caches


def test_what_cannot_be_embedded_is_refused(engine: Engine, backend: FakeBackend) -> None:
    with pytest.raises(PromptRefused) as caught:
        engine.add("long", Request(embed=("8" * 600,)))
    assert "too_long" == caught.value.reason
    with pytest.raises(PromptRefused, match="not both"):
        engine.add("both", Request(raw="a", embed=("a",)))
    backend.embeds = False
    with pytest.raises(PromptRefused, match="gives no vectors") as caught:
        engine.add("torch", Request(embed=("a",)))
    assert ("invalid", "embed") == (caught.value.reason, caught.value.code)


def test_the_pooling_is_that_of_the_models_record(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for kind, ended, found in ((3, True, Pooling("last", ended=True)), (1, False, MEAN), (None, False, MEAN)):
        record = {} if kind is None else {"qwen3.pooling_type": kind}
        write_metadata(file, {"general.architecture": "qwen3", "tokenizer.ggml.add_eos_token": ended, **record})
        assert found == pooling_of(file)
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    assert MEAN == pooling_of(tmp_path)
    (folder / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    assert Pooling("last", ended=True) == pooling_of(tmp_path)
    (folder / "config.json").write_text("{")
    assert MEAN == pooling_of(tmp_path)
