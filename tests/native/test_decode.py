"""Several decode steps in one call: the tokens that one step a call gives, and where the call ends."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from edged.core.prompt import Sampling
from edged.engine.backends.base import ComputeError, Decoding, Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.kernels.library import KernelError
from edged.engine.sampler import Sampler
from edged.models.formats.packed import open_packed
from tests.native.helpers import ALL_KERNELS, open_model, pack_overflowing, pack_tiny

CALM = array("i", [0])
NONE = array("i")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in 4 bits."""
    return pack_tiny(tmp_path_factory.mktemp("decode"), "llama", bits=4)[1]


@dataclass
class Reply:
    """A sequence on a backend, as the engine keeps one."""

    backend: NativeBackend
    tokens: list[int]
    sampling: Sampling
    slot: int = 0
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.slot = self.backend.open()
        self.sampler = Sampler(self.sampling, self.tokens)
        if len(self.tokens) > 1:
            self.run(self.tokens[:-1], 0)

    def run(self, tokens: Sequence[int], start: int) -> np.ndarray:
        (rows,) = self.backend.run([Slice(self.slot, start, tokens)])
        assert not isinstance(rows, ComputeError), rows
        return rows[-1]

    def step(self) -> int:
        """One token, by its logits."""
        self.tokens.append(self.sampler.sample(self.run(self.tokens[-1:], len(self.tokens) - 1)))
        return self.tokens[-1]

    def order(self, steps: int, watch: bool = False) -> Decoding:
        history = array("i", self.tokens) if watch else None
        uniforms = self.sampler.uniforms(steps)
        return Decoding(
            self.slot, len(self.tokens) - 1, self.tokens[-1], self.sampling, uniforms, self.sampler.seen, history
        )

    def take(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.sampler.advance(token)
        self.tokens += tokens


SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0, repetition_penalty=1.7),
    Sampling(seed=1),
    Sampling(seed=2, top_k=7),
    Sampling(seed=3, top_p=0.7, repetition_penalty=1.3),
    Sampling(seed=4, min_p=0.2, temperature=1.3),
]


def expected(folder: Path, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """What one step a call and the sampler give for each prompt alone."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=8)
        replies = [Reply(backend, list(prompt), how) for prompt, how in zip(prompts, SAMPLINGS, strict=True)]
        return [[reply.step() for _ in range(count)] for reply in replies]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tokens_are_those_of_one_step_a_call(folder: Path, threads: int) -> None:
    """Greedy and drawn, with penalties, alone and together, over the edges of blocks, and the cache holds the same."""
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 203, int(random.integers(1, 60))).tolist() for _ in SAMPLINGS]
    answers = expected(folder, prompts, 70)
    with open_model(folder, threads=threads) as model:
        backend = NativeBackend(model, slots=8)
        replies = [Reply(backend, list(prompt), how) for prompt, how in zip(prompts, SAMPLINGS, strict=True)]
        while min(len(reply.tokens) - len(prompt) for reply, prompt in zip(replies, prompts, strict=True)) < 70:
            company = random.permutation(len(replies))[: int(random.integers(1, len(replies) + 1))]
            steps = int(random.integers(1, 9))
            chosen = backend.decode([replies[index].order(steps) for index in company], steps, NONE, CALM)
            assert {len(tokens) for tokens in chosen} <= set(range(1, steps + 1))
            for index, tokens in zip(company, chosen, strict=True):
                if len(replies[index].tokens) < 150:
                    replies[index].take(tokens)
                    continue
                backend.close(replies[index].slot)
                replies[index] = Reply(backend, replies[index].tokens, SAMPLINGS[index])
        for reply, prompt, answer in zip(replies, prompts, answers, strict=True):
            assert answer == reply.tokens[len(prompt) :][:70]
            backend.close(reply.slot)
            slot = backend.open()
            assert len(reply.tokens) - 1 == backend.reuse(slot, reply.tokens)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_every_instruction_set(folder: Path, kernels: str) -> None:
    """Each against its own logits."""
    with open_model(folder, kernels=kernels) as model:
        backend = NativeBackend(model, slots=2)
        one, other = (Reply(backend, [1, 2, 3], Sampling(temperature=0)) for _ in range(2))
        (chosen,) = backend.decode([one.order(8)], 8, NONE, CALM)
        assert [other.step() for _ in range(8)] == chosen


def test_it_ends_with_a_stop_token_of_any(folder: Path) -> None:
    """The stop token is the last of its sequence; the others have as many."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=4)
        plain = [Reply(backend, [seed, 2, 3], Sampling(seed=seed)) for seed in range(2)]
        answers = [[reply.step() for _ in range(8)] for reply in plain]
        stop = answers[1][3]
        assert stop not in [*answers[0], *answers[1][:3]]
        replies = [Reply(backend, [seed, 2, 3], Sampling(seed=seed)) for seed in range(2)]
        orders = [reply.order(8) for reply in replies]
        assert [answer[:4] for answer in answers] == backend.decode(orders, 8, array("i", [150, stop]), CALM)


def test_it_ends_where_drafts_could_follow(folder: Path) -> None:
    """At the first token that comes after the one before it as earlier in the text; where nobody asks it goes on."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=2)
        for prompt in ([5, 9, 1, 2], [1]):
            plain = Reply(backend, [*prompt], Sampling(seed=7, temperature=0.05))
            for _ in range(64):
                plain.step()
            ends = [
                at
                for at in range(4, len(plain.tokens) + 1)
                if plain.tokens[at - 2 : at] in [plain.tokens[i : i + 2] for i in range(at - 2)]
            ]
            assert ends, "the model should repeat itself"
            reply = Reply(backend, [*prompt], Sampling(seed=7, temperature=0.05))
            while len(reply.tokens) < ends[0]:
                (chosen,) = backend.decode([reply.order(8, watch=True)], 8, NONE, CALM)
                reply.take(chosen)
                assert len(chosen) == 8 or len(reply.tokens) == ends[0] or (len(reply.tokens) - 1) % 32 == 0
            (chosen,) = backend.decode([reply.order(3)], 3, NONE, CALM)
            assert plain.tokens[ends[0] : ends[0] + 3] == chosen
            for each in (plain, reply):
                backend.close(each.slot)


def test_it_takes_what_is_left_of_a_block(folder: Path) -> None:
    """And of the context: blocks are never taken for tokens that may not be chosen."""
    with open_model(folder, blocks=2, context=40) as model:
        backend = NativeBackend(model, slots=1)
        reply = Reply(backend, list(range(28)), Sampling(temperature=0))
        lengths = []
        while len(reply.tokens) <= 40:
            (chosen,) = backend.decode([reply.order(8)], 8, NONE, CALM)
            lengths.append(len(chosen))
            reply.take(chosen)
        assert [5, 8] == lengths
        with pytest.raises(ComputeError):
            backend.decode([reply.order(8)], 8, NONE, CALM)


def test_another_thread_ends_it(folder: Path) -> None:
    """After the step that runs."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=1)
        reply = Reply(backend, [1, 2, 3], Sampling(temperature=0))
        interrupt = array("i", [1])
        (chosen,) = backend.decode([reply.order(8)], 8, NONE, interrupt)
        assert 1 == len(chosen)
        reply.take(chosen)
        interrupt[0] = 0
        (chosen,) = backend.decode([reply.order(8)], 8, NONE, interrupt)
        assert 8 == len(chosen)


def test_another_thread_ends_it_while_it_runs(folder: Path) -> None:
    """The interpreter lock is free meanwhile, and each step looks again."""
    steps, interrupt = 1900, array("i", [0])
    order = Decoding(0, 0, 5, Sampling(temperature=0), array("d", bytes(8 * steps)), NONE)
    with open_model(folder, context=2048) as model:
        (whole,) = model.decode([order], [list(range(64))], steps, NONE, interrupt)
        assert steps == len(whole)
        timer = threading.Timer(0.001, interrupt.__setitem__, args=(0, 1))
        timer.start()
        (chosen,) = model.decode([order], [list(range(64))], steps, NONE, interrupt)
        timer.join()
        assert 1 <= len(chosen) < steps
        assert whole[: len(chosen)] == chosen


def test_what_cannot_be_computed_is_left_to_one_step(folder: Path) -> None:
    """ComputeError, and the slots are as before: a token out of range, no room, a place that is not the next."""
    with open_model(folder, blocks=3) as model:
        backend = NativeBackend(model, slots=3)
        good, bad = (Reply(backend, [1, 2, 3], Sampling(temperature=0)) for _ in range(2))
        bad.tokens[-1] = 999
        with pytest.raises(ComputeError):
            backend.decode([good.order(4), bad.order(4)], 4, NONE, CALM)
        bad.tokens[-1:] = [4, 5]
        with pytest.raises(ComputeError):
            backend.decode([good.order(4), bad.order(4)], 4, NONE, CALM)
        bad.tokens.pop()
        assert 4 == len(backend.decode([good.order(4), bad.order(4)], 4, NONE, CALM)[0])
        full = Reply(backend, list(range(33))[:32], Sampling(temperature=0))
        full.run(full.tokens[-1:], 31)
        full.tokens.append(7)
        with pytest.raises(ComputeError):
            backend.decode([full.order(2)], 2, NONE, CALM)


@pytest.mark.parametrize(
    ("start", "table", "steps"),
    [(-1, [0], 1), (0, [], 1), (0, [64], 1), (2**31 - 1, [0], 3), (40, [0], 1), (0, [0], 0), (0, [0], -5)],
)
def test_bad_orders_are_refused(folder: Path, start: int, table: list[int], steps: int) -> None:
    """By the kernels themselves, with a sentence."""
    order = Decoding(0, start, 5, Sampling(temperature=0), array("d", bytes(64)), NONE)
    with open_model(folder) as model:
        with pytest.raises((KernelError, ValueError), match=r"\w+ \w+"):
            model.decode([order], [table], steps, NONE, CALM)
        with pytest.raises(KernelError):
            model.decode([], [], 1, NONE, CALM)
    with pytest.raises(KernelError, match="closed"):
        model.decode([order], [[0]], 1, NONE, CALM)


def test_a_table_that_ends_too_soon_ends_it(folder: Path) -> None:
    """What was computed before counts."""
    order = Decoding(0, 30, 5, Sampling(temperature=0), array("d", bytes(64)), NONE)
    with open_model(folder) as model:
        (chosen,) = model.decode([order], [[0]], 6, NONE, CALM)
        assert 2 == len(chosen)


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    """From the first step on: the error of a step; nothing is chosen."""
    order = Decoding(0, 0, 5, Sampling(temperature=0), array("d", bytes(64)), NONE)
    with open_model(pack_overflowing(tmp_path, 4)) as model, pytest.raises(KernelError, match="not finite"):
        model.decode([order], [[0]], 4, NONE, CALM)


@pytest.mark.parametrize("token", [0, 100, 202])
def test_a_bad_logit_is_found_wherever_it_is(tmp_path: Path, token: int) -> None:
    """Of any token and any row of a step: each thread looks at what it computed."""
    _, packed = pack_tiny(tmp_path, "llama", tie_word_embeddings=False)
    offset, _ = open_packed(packed).place("head") or (0, 0)
    with (packed / "model.safetensors").open("r+b") as file:
        for k in range(64):  # one token's weights in its tile of 8
            file.seek(offset + (token // 8 * 64 * 8 + k * 8 + token % 8) * 4)
            file.write(np.float32(3e38 if k % 2 else -3e38).tobytes())
    for rows in (1, 3, 17):
        with open_model(packed) as model:
            backend = NativeBackend(model, slots=rows)
            slots = [backend.open() for _ in range(rows)]
            results = backend.run([Slice(slot, 0, [1]) for slot in slots])
            assert all(isinstance(result, ComputeError) for result in results)


def test_of_equals_the_lowest_token_is_chosen(tmp_path: Path) -> None:
    """As the sampler does, whichever thread computed it."""
    _, packed = pack_tiny(tmp_path, "llama", tie_word_embeddings=False)
    offset, size = open_packed(packed).place("head") or (0, 0)
    with (packed / "model.safetensors").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with open_model(packed, threads=3) as model:
        reply = Reply(NativeBackend(model, slots=1), [9], Sampling(temperature=0))
        assert [[0, 0, 0, 0]] == reply.backend.decode([reply.order(4)], 4, NONE, CALM)


def test_a_token_that_cannot_be_chosen_ends_it(folder: Path) -> None:
    """What was chosen before counts: here a penalty makes the first token's next logit infinite."""
    absurd = Sampling(temperature=0, repetition_penalty=1e-40)
    with open_model(folder) as model:
        reply = Reply(NativeBackend(model, slots=1), [9], absurd)
        (chosen,) = reply.backend.decode([replace(reply.order(8), seen=NONE)], 8, NONE, CALM)
        assert 1 <= len(chosen) < 8
        reply.take(chosen)
        with pytest.raises(ComputeError):
            reply.backend.decode([reply.order(8)], 8, NONE, CALM)
