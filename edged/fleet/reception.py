"""The reception of a model over the broker as a state machine: messages in, actions out. No I/O.

    offer → opening → receiving → storing → stored, or failed

One model at a time. Each chunk is verified by the offer's hash tree before it counts, so that a forged or damaged one
changes nothing; the whole file is verified by its SHA-256 when it is stored. Nothing is acknowledged: the device asks
for what is missing when nothing new comes, and is silent while the sender has announced that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal

from edged.core.chunk_set import ChunkSet, Range
from edged.core.errors import BadValue
from edged.fleet.reception_actions import Action, Bad, Close, Ignore, Listen, Open, Report, Request, Store, Write
from edged.fleet.trust import Trust
from edged.wire import model_push, strict_json
from edged.wire.model_push import MAX_RANGES, Offer, State, StateName

JOIN_WITHIN: Final = 1.0  # seconds: each device draws a moment, so that the first request serves the others
QUIET: Final = 2.0  # seconds without anything new before a request, and as many again are drawn
REPORT_EVERY: Final = 15.0  # seconds between two states of a reception, and as many again are drawn
SILENT_AFTER: Final = 120.0  # seconds without a message of the sender after which another model may come
IN_FLIGHT: Final = 16  # chunks that wait to be written; more are dropped, and asked for again
_ANSWERED: Final = 64  # offers whose copies get no second answer
_ANSWERS: Final = 20.0  # answers in a row; then one a second


class _Stream:
    """The model that is being received."""

    def __init__(self, digest: str, offer: Offer, key: int, now: float) -> None:
        self.digest = digest
        self.offer = offer
        self.keys = {key}
        self.phase: Literal["opening", "receiving", "storing"] = "opening"
        self.have = ChunkSet(offer.count)
        self.writing: set[int] = set()
        self.heard_at = now
        self.request_at = now
        self.report_at = now

    @property
    def done(self) -> float:
        return self.have.size / self.have.count


class Reception:
    """See the module. `trust` gives the keys that count now, `free` the bytes of disk that a model may take (those that
    are free, and those that it has), `stored` whether it is in the store. Owned by the agent's main thread.
    """

    def __init__(
        self,
        device: str,
        groups: tuple[str, ...],
        trust: Callable[[], Trust],
        free: Callable[[str], int],
        stored: Callable[[str], bool],
        clock: Callable[[], float],
        wall: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._device = device
        self._groups = groups
        self._trust = trust
        self._free = free
        self._stored = stored
        self._clock = clock
        self._wall = wall
        self._uniform = uniform
        self._stream: _Stream | None = None
        self._answered: OrderedDict[int, bool] = OrderedDict()  # hash of an offer → whether the answer was final
        self._tokens, self._refilled = _ANSWERS, clock()
        self._ignored: set[str] = set()

    @property
    def receiving(self) -> str | None:
        """The digest of the model that is being received."""
        return self._stream.digest if self._stream is not None else None

    # ---- messages ---------------------------------------------------------------------------------------------------

    def offered(self, digest: str, topic: str, payload: bytes) -> list[Action]:
        """An offer, or another copy of one."""
        key = hash((digest, payload))
        if key in self._answered:
            if self._stream is not None and self._stream.digest == digest:
                self._stream.heard_at = self._clock()
            return []
        try:
            offer = model_push.parse_offer(payload)
        except BadValue as error:
            return [Bad(f"an offer of a model was ignored: {error}")]
        if not offer.is_for(self._device, self._groups) or not self._may_answer():
            return []
        why = self._refusal(digest, topic, payload, offer)
        if why is not None or self._stored(digest):
            self._remember(key, final=True)
            state = State("stored", 1.0, "it was in the store already") if why is None else State("refused", reason=why)
            return [Report(digest, offer.name, state, final=why is not None)]
        self._remember(key, final=False)
        return self._accept(digest, offer, key)

    def _accept(self, digest: str, offer: Offer, key: int) -> list[Action]:
        """An offer that holds: receive it, go on with it, or after the present one."""
        stream = self._stream
        if stream is None:
            self._ignored.discard(digest)
            self._stream = _Stream(digest, offer, key, self._clock())
            return [Open(digest, offer)]
        if stream.digest == digest and (stream.offer.root, stream.offer.size) == (offer.root, offer.size):
            stream.keys.add(key)
            stream.heard_at = self._clock()
            return [self._report(stream)]
        why = f"the device is receiving {stream.offer.name}; this model comes after it"
        return [Report(digest, offer.name, State("waiting", reason=why), final=False)]

    def sending(self, digest: str, payload: bytes) -> list[Action]:
        """The sender announces what it will send; nothing: then it waits for requests."""
        stream = self._stream
        if stream is None or stream.digest != digest or stream.phase != "receiving":
            return []
        try:
            coming = model_push.parse_ranges(payload)
        except BadValue as error:
            return [Bad(f"an announcement about a model was ignored: {error}")]
        now = stream.heard_at = self._clock()
        if not coming:
            stream.request_at = min(stream.request_at, now + self._uniform(0.0, JOIN_WITHIN))
        elif stream.have.gaps_within(coming, MAX_RANGES):
            stream.request_at = max(stream.request_at, self._next_request())
        return []

    def chunk(self, digest: str, number: int | None, payload: bytes) -> list[Action]:
        """A chunk: verified and written where it is missing."""
        stream = self._stream
        if stream is None or stream.digest != digest:
            return self._unwanted(digest)
        if stream.phase != "receiving":
            return []
        if number is None or number >= stream.offer.count or len(payload) != stream.offer.payload_size(number):
            return [Bad("a chunk of a model was ignored: it is not one of the offered file")]
        stream.heard_at = self._clock()
        if number in stream.have or number in stream.writing or len(stream.writing) >= IN_FLIGHT:
            return []
        stream.writing.add(number)
        return [Write(number, payload)]

    # ---- answers to actions -----------------------------------------------------------------------------------------

    def opened(self, have: list[Range]) -> list[Action]:
        """The partial file is open and has these chunks."""
        stream = self._stream
        if stream is None or stream.phase != "opening":
            return []
        stream.have.add_ranges(have)
        stream.phase = "receiving"
        if stream.have.full:
            return self._store(stream)
        now = self._clock()
        stream.request_at = now + self._uniform(0.0, JOIN_WITHIN)
        stream.report_at = now + self._report_every()
        return [Listen(stream.digest), self._report(stream)]

    def written(self, number: int, *, whole: bool) -> list[Action]:
        """A chunk was written; not `whole`: it does not belong to the offered file, and was not."""
        stream = self._stream
        if stream is None or stream.phase != "receiving":
            return []
        stream.writing.discard(number)
        if not whole:
            return [Bad("a chunk of a model was ignored: its hash is wrong")]
        stream.have.add(number)
        stream.request_at = self._next_request()
        return self._store(stream) if stream.have.full else []

    def failed(self, reason: str) -> list[Action]:
        """The partial file cannot be used; it stays."""
        return self._end(State("failed", self._stream.done if self._stream else 0.0, reason), remove=False)

    def stored(self, failure: str | None, *, damaged: bool = False) -> list[Action]:
        """The file was brought into the store, or not; `damaged`: its bytes are not the model's."""
        state = State("stored", 1.0) if failure is None else State("failed", 1.0, failure)
        return self._end(state, remove=failure is None or damaged)

    # ---- time and the connection ------------------------------------------------------------------------------------

    def connected(self) -> list[Action]:
        """The broker is there (again)."""
        self._ignored.clear()
        stream = self._stream
        if stream is None or stream.phase != "receiving":
            return []
        stream.heard_at = self._clock()
        stream.request_at = self._clock() + self._uniform(0.0, JOIN_WITHIN)
        return [Listen(stream.digest)]

    def next_tick(self) -> float | None:
        """The monotonic time at which `tick` has something to do."""
        stream = self._stream
        if stream is None or stream.phase != "receiving":
            return None
        return min(stream.request_at, stream.report_at, stream.heard_at + SILENT_AFTER)

    def tick(self) -> list[Action]:
        """What is due now."""
        stream, now = self._stream, self._clock()
        if stream is None or stream.phase != "receiving":
            return []
        if now >= stream.heard_at + SILENT_AFTER:
            why = "the sender is silent; push the model again, it resumes where it stopped"
            return self._end(State("failed", stream.done, why), remove=False, again=True)
        actions: list[Action] = []
        if now >= stream.request_at:
            stream.request_at = self._next_request()
            actions.append(Request(stream.digest, stream.have.gaps(MAX_RANGES)))
        if now >= stream.report_at:
            stream.report_at = now + self._report_every()
            actions.append(self._report(stream))
        return actions

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _refusal(self, digest: str, topic: str, payload: bytes, offer: Offer) -> str | None:
        try:
            document = strict_json.loads(payload)
            self._trust().check_offer(topic, document, offer.signature, offer.expires_at, self._wall())
        except BadValue as error:
            return str(error)
        free, needed = self._free(digest), offer.size * 11 // 10
        if needed > free:
            return f"the model needs {needed / 1e6:,.0f} MB of disk but {free / 1e6:,.0f} MB are free; free some space"
        return None

    def _store(self, stream: _Stream) -> list[Action]:
        stream.phase = "storing"
        return [Ignore(stream.digest), self._report(stream), Store(stream.digest, stream.offer.name)]

    def _end(self, state: State, *, remove: bool, again: bool = False) -> list[Action]:
        """The reception ended. `again`: the same offer may be tried once more."""
        stream, self._stream = self._stream, None
        if stream is None:
            return []
        done = set() if again else stream.keys
        # Offers that waited are answered anew.
        self._answered = OrderedDict((key, True) for key, final in self._answered.items() if final or key in done)
        report = Report(stream.digest, stream.offer.name, state, final=True)
        listened: list[Action] = [Ignore(stream.digest)] if stream.phase == "receiving" else []
        return [*listened, Close(remove), report]

    def _remember(self, key: int, *, final: bool) -> None:
        self._answered[key] = final
        if len(self._answered) > _ANSWERED:
            self._answered.popitem(last=False)

    def _may_answer(self) -> bool:
        """Whether another offer may be answered: what a flood of them costs is bounded."""
        now = self._clock()
        self._tokens, self._refilled = min(_ANSWERS, self._tokens + now - self._refilled), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _unwanted(self, digest: str) -> list[Action]:
        """A subscription of before a restart is ended once for each connection."""
        if digest in self._ignored or len(self._ignored) >= _ANSWERED:
            return []
        self._ignored.add(digest)
        return [Ignore(digest)]

    def _next_request(self) -> float:
        return self._clock() + QUIET + self._uniform(0.0, QUIET)

    def _report_every(self) -> float:
        return REPORT_EVERY + self._uniform(0.0, REPORT_EVERY)

    def _report(self, stream: _Stream) -> Report:
        doing: StateName = "storing" if stream.phase == "storing" else "receiving"
        return Report(stream.digest, stream.offer.name, State(doing, stream.done), final=False)
