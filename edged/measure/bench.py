"""`edged bench`: every case a few times, the peer's measurement right after ours, and the medians.

Medians over the rounds. The ratio is taken pair by pair and its median shown: on a shared machine two measurements
side by side are comparable, two averages need not be. Decode depends most on the memory's load by other
programs, so its pairs are spread over the whole run, one before each other case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from edged.core.errors import ModelError
from edged.engine.backends.native_backend import NativeBackend
from edged.measure import speed
from edged.measure.footprint import footprint, huge_share
from edged.measure.peer import LlamaBench, LlamaPeer
from edged.measure.random_gguf import write_random_gguf
from edged.models.formats.packed import GGUF_TOKENIZER, WEIGHTS, PackedModel
from edged.models.formats.tiles import Kind
from edged.models.packing.shapes import SHAPES
from edged.models.store.locate import LocatedModel

Peer = LlamaPeer | LlamaBench
TOKENIZER_JSON: Final = "tokenizer.json"


@dataclass(frozen=True)
class PeerChoice:
    """Which peer: `llama-cpp-python` in `python`, or the program `llama_bench` where one is given."""

    python: str
    llama_bench: Path | None


@dataclass(frozen=True)
class Row:
    """A case's medians. `ratios` of all pairs, above 1 where ours is faster; empty without a peer."""

    name: str
    unit: str
    ours: float
    peer: float | None = None
    ratios: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """The median of the pairs."""
        return median(self.ratios) if self.ratios else None


@dataclass
class Result:
    """The results of a run."""

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def bench(
    model: LocatedModel,
    packed: PackedModel,
    models: Path,
    *,
    threads: int | None,
    rounds: int,
    kernels: str,
    peer: PeerChoice | None,
    work: Path,
    progress: Callable[[str], None],
) -> Result:
    """Runs everything. `work` is a folder for a peer's random weights. Raises ModelError."""
    progress("memory")
    about = _about(packed) | {"memory": footprint(str(model.path), models, 2048) if has_tokenizer(packed) else None}
    backend = speed.open_for_bench(packed, threads, kernels)
    about |= {"threads": backend.model.threads, "kernels": backend.model.kernels}
    opened = open_peer(model, packed, peer, backend.model.threads, work, progress) if peer else None
    result = Result(about)
    decode, *others = speed.cases(backend)
    try:
        with_bandwidth = _WithBandwidth(decode, backend.model.threads)
        progress(decode.name)
        spread = _Pairs(replace(decode, run=with_bandwidth.run), opened)
        rows = []
        for case in others:
            spread.measure()
            progress(case.name)
            pairs = _Pairs(case, opened)
            for _ in range(rounds):
                pairs.measure()
            rows.append(pairs.row())
        while spread.count < rounds:
            spread.measure()
        result.rows += [spread.row(), *rows, _outside(backend, rounds)]
    finally:
        if opened is not None:
            about["peer"] = opened.about
            opened.close()
    about |= _limit(speed.token_bytes(packed), with_bandwidth.moments[1:], spread.theirs)  # the first was to warm up
    about |= {"huge_pages": huge_share((packed.folder / WEIGHTS).resolve())}
    return result


def has_tokenizer(packed: PackedModel) -> bool:
    """Whether a packed model takes text: random weights of a shape have a tokenizer only where they were given one."""
    return not {GGUF_TOKENIZER, TOKENIZER_JSON}.isdisjoint(packed.manifest.files)


def _about(packed: PackedModel) -> dict[str, Any]:
    manifest = packed.manifest
    return {
        "model": manifest.name,
        "quantization": manifest.quantization,
        "weights_bytes": packed.weights_bytes,
        "token_bytes": speed.token_bytes(packed),
    }


def open_peer(
    model: LocatedModel,
    packed: PackedModel,
    order: PeerChoice,
    threads: int,
    work: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Peer:
    """The peer with the same file, or with random weights of the same shape in the folder `work`. Raises ModelError."""
    path = model.path
    if packed.manifest.name in SHAPES:
        progress("random weights for the peer")
        bits = 8 if packed.manifest.tensors["embedding"].kind in {Kind.Q8, Kind.Q8_MIN} else 4
        path = write_random_gguf(packed.manifest.name, work / "peer.gguf", bits)
    elif model.format != "gguf":
        raise ModelError("unsupported", "llama.cpp runs GGUF files; give the GGUF file itself, or a packed --shape.")
    progress("loading the peer")
    if order.llama_bench is not None:
        return LlamaBench(order.llama_bench, path, threads)
    return LlamaPeer(path, threads, 4096, order.python)


class _Pairs:
    """A case's measurements, ours and the peer's in turn. `count`: how many there are; `theirs`: the peer's."""

    def __init__(self, case: speed.Case, peer: Peer | None) -> None:
        self._case = case
        self._peer = peer
        self._ours: list[float] = []
        self.theirs: list[float] = []
        case.run()  # memory is touched and caches are warm from here on
        self._ask()

    @property
    def count(self) -> int:
        return len(self._ours)

    def measure(self) -> None:
        """Measures once more."""
        self._ours.append(self._case.run())
        value = self._ask()
        if value is not None:
            self.theirs.append(value)

    def row(self) -> Row:
        """The medians."""
        ours, theirs = self._ours, self.theirs
        if not theirs:
            return Row(self._case.name, self._case.unit, median(ours))
        ratios = tuple(one / other for one, other in zip(ours, theirs, strict=True))
        return Row(self._case.name, self._case.unit, median(ours), median(theirs), ratios)

    def _ask(self) -> float | None:
        if self._peer is None or self._case.peer is None:
            return None
        return self._peer.ask(*self._case.peer)


def _outside(backend: NativeBackend, rounds: int) -> Row:
    ids = np.random.default_rng(0).integers(0, backend.vocabulary, 256).tolist()
    return Row("a step outside the model", "ms", median(speed.outside_ms(backend, ids) for _ in range(rounds)))


class _WithBandwidth:
    """Decode with the memory's speed of the same moment, which other programs change from second to second.

    `moments`: tokens a second, and bytes a second that a plain loop read before its warm-up and right after (their
    mean).
    """

    def __init__(self, case: speed.Case, threads: int) -> None:
        self.moments: list[tuple[float, float]] = []
        self._case = case
        self._loop = speed.ReadLoop(threads)

    def run(self) -> float:
        """One measurement."""
        before = self._loop.bandwidth()
        tokens = self._case.run()
        after = self._loop.bandwidth()
        self.moments.append((tokens, (before + after) / 2))
        return tokens


def _limit(size: int, moments: Sequence[tuple[float, float]], theirs: Sequence[float]) -> dict[str, float]:
    """The memory's limit for decode: how fast a plain loop reads over the `size` bytes that a token needs, the fraction
    of it that was reached, and how many times the peer's decode that limit is; medians, moment by moment."""
    limits = [read / size for _, read in moments]
    figures = {
        "read_bytes_per_second": median(read for _, read in moments),
        "limit_tokens_per_second": median(limits),
        "fraction_of_limit": median(tokens / limit for (tokens, _), limit in zip(moments, limits, strict=True)),
    }
    if theirs:
        figures["limit_over_peer"] = median(limit / their for limit, their in zip(limits, theirs, strict=True))
    return figures
