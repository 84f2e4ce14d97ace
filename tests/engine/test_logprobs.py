"""Log probabilities of the tokens of a text."""

from __future__ import annotations

import math

import numpy as np

from edged.core.prompt import Request, Sampling
from edged.engine.engine import Engine
from edged.engine.logprobs import LEAST, LogprobRecord
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import FakeBackend
from tests.engine.running import check, drain


def test_the_best_tokens_come_first_with_the_softmax_of_the_raw_logits() -> None:
    record = LogprobRecord(top=2)
    record.add(0, np.log(np.array([0.2, 0.5, 0.3], np.float32)), 2)
    (found,) = record.of_text(lambda position, token: True, str)
    assert ("2", ["1", "2"]) == (found.token, [one.token for one in found.top])
    assert all(
        abs(math.log(share) - log) < 1e-6
        for share, log in [(0.3, found.logprob), *zip((0.5, 0.3), (one.logprob for one in found.top), strict=True)]
    )


def test_what_the_model_rules_out_has_the_least_that_json_can_express() -> None:
    record = LogprobRecord(top=0)
    record.add(0, np.array([0.0, -np.inf], np.float32), 1)
    (found,) = record.of_text(lambda position, token: True, str)
    assert (LEAST, ()) == (found.logprob, found.top)


def test_only_the_tokens_of_the_text_are_reported(engine: Engine, backend: FakeBackend, codec: TextCodec) -> None:
    """Neither the token that ends the answer nor what is cut for a stop text."""
    for text, stop, shown in (("ab", (), "ab"), ("axyb", ("xy",), "a")):
        request = Request(raw="go", sampling=Sampling(temperature=0, stop=stop), logprobs=True, top_logprobs=3)
        script(backend, len(engine.encode(request)), [*codec.encode(text, specials=False), 2])
        engine.add(text, request)
        final = check(drain(engine)[text])
        assert ("stop", shown) == (final.reason, final.text)
        assert shown == "".join(one.token for one in final.logprobs)
        assert all([one.token] == [best.token for best in one.top[:1]] and len(one.top) == 3 for one in final.logprobs)


def script(backend: FakeBackend, prompt: int, wishes: list[int]) -> None:
    """The model writes these tokens after a prompt of so many."""
    backend.script = lambda cache: wishes[min(max(0, len(cache) - prompt), len(wishes) - 1)]
