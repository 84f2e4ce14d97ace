"""A fake backend that needs no torch, and tiny models for the real one."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edged.core.prompt import Final, ModelInfo
from edged.engine import choose_plain
from edged.engine.backends.base import MAX_SLICE, ComputeError, Decoding, Logits, Slice
from edged.engine.chat import PromptEncoder
from edged.engine.engine import Engine
from edged.models.formats.gguf import open_gguf
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.sources import codec_from_gguf
from edged.models.tokenizer.template import ChatTemplate
from tests.tiny import CONTROL, make_checkpoint, make_gguf


class FakeBackend:
    """Logits that depend on every token before, so that a lost or doubled token shows. `script` may overrule them."""

    name = "fake"
    quantization = "none"
    weights_bytes = 0
    embeds = True

    def __init__(self, vocabulary: int, context: int = 512, slots: int = 4, drafts: int = 0) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.slots = slots
        self.drafts = drafts
        self.caches: dict[int, list[int]] = {}
        self.drafted: dict[int, list[int]] = {}
        self.log: list[list[int]] = []  # the number of tokens of each slice of each run
        self.draft_log: list[int] = []  # the number of drafts of each run
        self.steps_log: list[tuple[int, int]] = []  # of each decode: the steps that were asked for and done
        self.watched: list[list[bool]] = []  # of each decode: which sequences wait for drafts
        self.max_steps = 1
        self.most_open = 0
        self.kept: list[int] = []  # what `reuse` finds
        self.script: Callable[[list[int]], int | float | ComputeError | None] = lambda _: None

    @property
    def exact(self) -> bool:
        return self.drafts > 0

    def open(self) -> int:
        slot = max(self.caches, default=0) + 1
        self.caches[slot] = []
        self.most_open = max(self.most_open, len(self.caches))
        return slot

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        if self.caches[slot]:
            return 0
        self.caches[slot] += self.kept[: len(tokens) - 1] if list(tokens[: len(self.kept)]) == self.kept else []
        return len(self.caches[slot])

    def close(self, slot: int) -> None:
        del self.caches[slot]

    def keep(self, slot: int, token: int) -> None:
        assert self.drafted[slot].pop(0) == token
        self.caches[slot].append(token)

    def decode(
        self, sequences: Sequence[Decoding], steps: int, stops: array[int], interrupt: array[int]
    ) -> list[list[int]]:
        assert 1 <= steps <= self.max_steps
        self.watched.append([one.history is not None for one in sequences])
        chosen: list[list[int]] = [[] for _ in sequences]
        for step in range(steps):
            rows = []
            for one, tokens in zip(sequences, chosen, strict=True):
                cache = self.caches[one.slot]
                assert one.start + len(tokens) == len(cache)
                rows.append(self._row([*cache, *[one.token, *tokens][-1:]]))
            if any(isinstance(row, ComputeError) for row in rows):
                break
            for one, tokens, row in zip(sequences, chosen, rows, strict=True):
                assert not isinstance(row, ComputeError)
                self.caches[one.slot] += [one.token, *tokens][-1:]
                seen = np.array(sorted({*one.seen, *tokens}), np.int32)
                tokens.append(choose_plain.choose(row[0], one.sampling, seen, one.uniforms[step]))
            if any(tokens[-1] in stops for tokens in chosen) or interrupt[0]:
                break
        self.steps_log.append((steps, len(chosen[0])))
        if not chosen[0]:
            raise ComputeError("no")
        return chosen

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        assert len({item.slot for item in slices}) == len(slices)
        self.log.append([len(item.tokens) for item in slices])
        self.draft_log.append(sum(len(item.drafts) for item in slices))
        return [self._one(item) for item in slices]

    def hidden(self, slot: int, start: int, tokens: Sequence[int]) -> Logits | ComputeError:
        """Of each token its id and its position."""
        self.log.append([len(tokens)])
        assert start == len(self.caches[slot])
        self.caches[slot] += tokens
        return np.array([[token, start + at] for at, token in enumerate(tokens)], np.float32)

    def _one(self, item: Slice) -> Logits | ComputeError:
        cache = self.caches[item.slot]
        assert item.start == len(cache)
        assert 1 <= len(item.tokens) <= MAX_SLICE
        assert len(item.drafts) <= self.drafts
        cache += item.tokens
        self.drafted[item.slot] = list(item.drafts)
        assert len(cache) + len(item.drafts) <= self.context
        rows = [self._row([*cache, *item.drafts[:count]]) for count in range(len(item.drafts) + 1)]
        errors = [row for row in rows if isinstance(row, ComputeError)]
        return errors[0] if errors else np.concatenate([row for row in rows if not isinstance(row, ComputeError)])

    def _row(self, cache: list[int]) -> Logits | ComputeError:
        digest = hashlib.sha256(str(cache).encode()).digest()
        logits = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal((1, self.vocabulary))
        logits[0, : len(CONTROL)] = -100.0
        wish = self.script(cache)
        if isinstance(wish, ComputeError):
            return wish
        if isinstance(wish, float):
            logits[:] = wish
        elif wish is not None:
            logits[0, wish] = 100.0
        return logits.astype(np.float32)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def codec(tiny_gguf: Path) -> TextCodec:
    return codec_from_gguf(open_gguf(tiny_gguf))


@pytest.fixture
def backend(codec: TextCodec) -> FakeBackend:
    return FakeBackend(codec.vocabulary)


@pytest.fixture
def engine(backend: FakeBackend, codec: TextCodec, tiny_gguf: Path) -> Engine:
    return make_engine(backend, codec, tiny_gguf)


def make_engine(backend: FakeBackend, codec: TextCodec, tiny_gguf: Path) -> Engine:
    info = ModelInfo("fake", "sha256:0", "llama", "none", "fake", backend.context, backend.slots, 0)
    template = ChatTemplate(open_gguf(tiny_gguf).get("tokenizer.chat_template"), codec.names)
    return Engine(info, backend, codec, PromptEncoder(codec, template))


class Clock:
    """Each look at it takes so many seconds."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def finals(engine: Engine) -> dict[str, Final]:
    """Steps until nothing is left; how each sequence ended."""
    return {
        key: event for _ in iter(lambda: engine.busy, False) for key, event in engine.step() if isinstance(event, Final)
    }


def what(final: Final) -> tuple[object, ...]:
    """A final without its times."""
    return final.reason, final.text, final.usage, final.logprobs, final.failure
