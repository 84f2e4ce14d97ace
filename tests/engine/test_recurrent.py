"""The engine over a native model with recurrent states: queueing, preemption and cancelling change no answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.backends.native_backend import NativeBackend
from edged.engine.scheduler import QUANTUM
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import finals, make_engine
from tests.engine.running import raw
from tests.native.conftest import kernels_missing
from tests.native.helpers import open_model, pack_tiny


@pytest.mark.skipif(kernels_missing() is not None, reason="no kernels")
def test_answers_are_those_of_each_prompt_alone(tmp_path: Path, codec: TextCodec, tiny_gguf: Path) -> None:
    """More prompts than slots, with answers longer than a slot is kept, and one that is cancelled."""
    layers = {"layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True}
    _, folder = pack_tiny(tmp_path, "lfm2", bits=4, vocab_size=codec.vocabulary, **layers)
    texts = ["the capital of Japan", "x", "one or other word " * 9, "they were said", "about it"]
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=2)
        engine = make_engine(backend, codec, tiny_gguf)  # type: ignore[arg-type]
        alone = []
        for text in texts:
            engine.add("a", raw(text, max_tokens=2 * QUANTUM))
            alone.append(finals(engine)["a"].text)
        for number, text in enumerate(texts):
            engine.add(str(number), raw(text, max_tokens=2 * QUANTUM))
        engine.add("cancelled", raw("the", max_tokens=100))
        for _ in range(4):
            engine.step()
        engine.cancel("cancelled")
        ended = finals(engine)
        assert alone == [ended[str(number)].text for number in range(len(texts))]
        assert model.states == backend.states.free
