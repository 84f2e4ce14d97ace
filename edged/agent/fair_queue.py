"""The order of service among requesters: who gets the next place in the worker, and how urgent each prompt is there.

Fair queueing after start-time fair queueing (Goyal, Vin, Cheng 1996) and Linux's CFS. Each requester has a virtual
time: the tokens it was charged for, where one token of priority p counts 2^(5 - p) times (a better priority costs
more). A requester that comes back after a pause starts at most CREDIT behind the others. A prompt's level is that of
its priority and two penalties of its requester: for what it had more than the requester that was served least, and for
many open prompts. So a flood, at whatever priority, ranks behind someone who asks now and then, and requesters who do
alike have the same level, which the engine computes together. Waiting makes the penalties smaller again (ageing):
nothing starves.

Every operation costs O(log n) at most, but for the refresh. `now` is monotonic seconds. One thread owns it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from edged.core.prompt import DEFAULT_PRIORITY, LEVELS_PER_PRIORITY

# Tokens ahead of the least served requester that cost nothing; each doubling costs the levels of one priority more.
# Requesters who take turns stay within it.
QUOTA: Final = 2048
CREDIT: Final = 131_072  # tokens that a requester may be behind the others after a pause: 7 doublings
FEW_OPEN: Final = 1  # open prompts of a requester who asks now and then
MANY_OPEN_PENALTY: Final = 3  # levels for a requester who has more open: computed when no other waits
MAX_LEVEL: Final = 40
AGEING_SECONDS: Final = 8.0  # of waiting take one level of the penalties away
MAX_IDLE: Final = 4096  # requesters without open prompts that are remembered, the newest
REFRESH_SECONDS: Final = 1.0  # the ranks of waiting requesters are computed anew after so long

_Rank = tuple[int, float, int]


@dataclass
class _Entry:
    seq: int
    requester: str
    priority: int
    cost: float
    arrived: float
    level: int
    """When it was added; for the estimate of its position."""
    running: bool = False
    charged: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.seq


@dataclass
class _Requester:
    name: str
    virtual: float
    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Heap of (priority, seq); entries that no longer wait are dropped when they reach the top."""
    waits: int = 0
    runs: int = 0
    levels: Counter[int] = field(default_factory=Counter)
    """How many of its waiting prompts were added at each level."""
    rank: _Rank | None = None

    @property
    def open(self) -> int:
        return self.waits + self.runs


class FairQueue:
    """Open prompts by their sequence numbers: waiting, or running in the worker.

    `may_run` returns how many prompts of a requester may run at a time; another answer counts within a second.
    """

    def __init__(self, may_run: Callable[[str], int]) -> None:
        self._may_run = may_run
        self._entries: dict[int, _Entry] = {}
        self._requesters: dict[str, _Requester] = {}
        self._ranks: list[tuple[_Rank, str]] = []  # heap; only those that equal their requester's rank count
        self._least: list[tuple[float, str]] = []  # heap of virtual times of open requesters, the same
        self._idle: dict[str, None] = {}  # requesters without open prompts, whose virtual times are remembered
        self._by_open: dict[int, dict[str, None]] = defaultdict(dict)  # requesters by how many prompts they have open
        self._most_open = 0
        self._levels: Counter[int] = Counter()
        self._waiting = 0
        self._floor = 0.0  # the virtual time of the requester that was served least; never goes back
        self._refreshed: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """Prompts that wait for a place in the worker."""
        return self._waiting

    def open_of(self, requester: str) -> int:
        """How many prompts of a requester wait or run."""
        known = self._requesters.get(requester)
        return known.open if known else 0

    # ---- prompts come and go ----------------------------------------------------------------------------------------

    def add(self, seq: int, requester: str, priority: int, cost: float, now: float) -> None:
        """A prompt waits. `cost`: the tokens that it is expected to take, prompt and answer."""
        known = self._requesters.setdefault(requester, _Requester(requester, 0.0))
        if not known.open:
            known.virtual = max(known.virtual, self._floor - CREDIT)
            heappush(self._least, (known.virtual, requester))
        self._count(known, waits=1)
        level = self._level(known, priority, 0.0)
        self._entries[seq] = _Entry(seq, requester, priority, cost, now, level)
        self._wait(known, self._entries[seq], now)

    def remove(self, seq: int, now: float, cost: float | None = None) -> None:
        """A prompt is no longer open. `cost`: the tokens that it took in fact, where it ran; None: as expected."""
        entry = self._entries.pop(seq)
        known = self._requesters[entry.requester]
        if entry.running:
            if cost is not None:
                self._charge(known, _weighted(cost, entry.priority) - entry.charged)
            self._count(known, runs=-1)
        else:
            self._leave(known, entry)
        self._rank(known, now)

    def take_next(self, now: float, below: int | None = None) -> int | None:
        """The next prompt, which from now on runs; None where each requester that waits has its share running.

        `below`: only a prompt of a better level than this one.
        """
        self._refresh(now)
        while self._ranks:
            rank, name = heappop(self._ranks)
            known = self._requesters.get(name)
            if known is None or known.rank != rank:
                continue
            known.rank = self._rank_of(known, now)
            if known.rank == rank and below is not None and rank[0] >= below:
                self._push_rank(known)
                return None
            if known.rank == rank:
                return self._start(known, now)
            self._push_rank(known)  # others came or were served since it was computed
        return None

    def start(self, seq: int, now: float) -> None:
        """A certain prompt runs from now on, whoever is next."""
        entry = self._entries[seq]
        if not entry.running:
            self._run(self._requesters[entry.requester], entry, now)

    def put_back(self, seq: int, now: float) -> None:
        """A prompt that ran waits again, at its old place; what it was charged is given back."""
        entry = self._entries[seq]
        if not entry.running:
            return
        known = self._requesters[entry.requester]
        self._charge(known, -entry.charged)
        entry.running, entry.charged = False, 0.0
        self._count(known, runs=-1, waits=1)
        self._wait(known, entry, now)

    # ---- questions --------------------------------------------------------------------------------------------------

    def level(self, seq: int, now: float) -> int:
        """How urgent a prompt is now: 0 (first) to MAX_LEVEL."""
        entry = self._entries[seq]
        return self._level(self._requesters[entry.requester], entry.priority, now - entry.arrived)

    def ahead_of_new(self, requester: str, priority: int) -> tuple[int, int]:
        """About how many waiting prompts would be served before a new one, at least; and its level."""
        known = self._requesters.get(requester) or _Requester(requester, self._floor)
        level = self._level(known, priority, 0.0, known.open + 1)
        return self._ahead(known, level, known.levels[level]), level

    def ahead_of(self, seq: int) -> int:
        """About how many waiting prompts are served before this one, which waits."""
        entry = self._entries[seq]
        own = self._requesters[entry.requester]
        return self._ahead(own, entry.level, own.levels[entry.level] - 1)

    def to_displace(self, requester: str) -> int | None:
        """The waiting prompt that should give its place in a full queue to a new one of this requester, if any.

        The last one of the requester that has most prompts open, where that is at least two more than this one has, or
        where this one has none and that one several.
        """
        most = self._most_open
        own = self.open_of(requester)
        while most >= own + 2 or (own < FEW_OPEN < most):
            for name in self._by_open.get(most, {}):
                last = self._last_waiting(self._requesters[name])
                if last is not None:
                    return last
            most -= 1
        return None

    def _ahead(self, own: _Requester, level: int, mine: int) -> int:
        """Waiting prompts before one of this level, of which `mine` are of the same requester and level."""
        before = sum(count for other, count in self._levels.items() if other < level)
        others = self._levels[level] - own.levels[level]
        turns = (mine + 1) * max(0, len(self._requesters) - len(self._idle) - 1)
        return before + mine + min(others, turns)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _count(self, known: _Requester, waits: int = 0, runs: int = 0) -> None:
        self._by_open[known.open].pop(known.name, None)
        if not self._by_open[known.open]:
            del self._by_open[known.open]
        known.waits += waits
        known.runs += runs
        self._waiting += waits
        if known.open:
            self._by_open[known.open][known.name] = None
            self._most_open = max(self._most_open, known.open)
            self._idle.pop(known.name, None)
        else:
            self._idle[known.name] = None
            while len(self._idle) > MAX_IDLE:
                name = next(iter(self._idle))
                del self._idle[name], self._requesters[name]
        while self._most_open and self._most_open not in self._by_open:
            self._most_open -= 1

    def _wait(self, known: _Requester, entry: _Entry, now: float) -> None:
        heappush(known.waiting, entry.order)
        known.levels[entry.level] += 1
        self._levels[entry.level] += 1
        self._rank(known, now)

    def _leave(self, known: _Requester, entry: _Entry) -> None:
        self._count(known, waits=-1)
        for levels in (known.levels, self._levels):
            levels[entry.level] -= 1
            if not levels[entry.level]:
                del levels[entry.level]

    def _start(self, known: _Requester, now: float) -> int:
        _, seq = known.waiting[0]
        self._run(known, self._entries[seq], now)
        return seq

    def _run(self, known: _Requester, entry: _Entry, now: float) -> None:
        self._leave(known, entry)
        self._count(known, runs=1)
        entry.running, entry.charged = True, _weighted(entry.cost, entry.priority)
        self._charge(known, entry.charged)
        self._rank(known, now)

    def _charge(self, known: _Requester, tokens: float) -> None:
        known.virtual = max(0.0, known.virtual + tokens)
        heappush(self._least, (known.virtual, known.name))
        self._advance()

    def _advance(self) -> None:
        """The floor follows the open requester that was served least."""
        while self._least:
            virtual, name = self._least[0]
            known = self._requesters.get(name)
            if known is not None and known.open and known.virtual == virtual:
                self._floor = max(self._floor, virtual)
                return
            heappop(self._least)

    def _level(self, known: _Requester, priority: int, waited: float, count: int | None = None) -> int:
        """`count`: prompts that it has open; None: as now."""
        self._advance()
        least = self._least[0][0] if self._least else known.virtual
        ahead = max(0.0, known.virtual - least)
        penalty = LEVELS_PER_PRIORITY * int(ahead // QUOTA).bit_length()
        if (known.open if count is None else count) > FEW_OPEN:
            penalty += MANY_OPEN_PENALTY
        aged = max(0, penalty - int(max(0.0, waited) / AGEING_SECONDS))
        return min(MAX_LEVEL, LEVELS_PER_PRIORITY * priority + aged)

    def _rank(self, known: _Requester, now: float) -> None:
        known.rank = self._rank_of(known, now)
        self._push_rank(known)

    def _rank_of(self, known: _Requester, now: float) -> _Rank | None:
        """A requester's rank: the level of its best waiting prompt, what it had, then order of arrival.

        None where nothing of it waits, or its share runs already.
        """
        while known.waiting and not self._still_waits(known.waiting[0][1]):
            heappop(known.waiting)
        if not known.waiting or known.runs >= self._may_run(known.name):
            return None
        priority, seq = known.waiting[0]
        return self._level(known, priority, now - self._entries[seq].arrived), known.virtual, seq

    def _push_rank(self, known: _Requester) -> None:
        if known.rank is not None:
            heappush(self._ranks, (known.rank, known.name))

    def _still_waits(self, seq: int) -> bool:
        entry = self._entries.get(seq)
        return entry is not None and not entry.running

    def _refresh(self, now: float) -> None:
        """Ranks change with time and with what others get: computed anew once a second."""
        if self._refreshed is None:
            self._refreshed = now
        if now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        self._ranks = []
        for known in self._requesters.values():
            self._rank(known, now)

    def _last_waiting(self, known: _Requester) -> int | None:
        waiting = [order for order in known.waiting if self._still_waits(order[1])]
        return max(waiting)[1] if waiting else None


def _weighted(tokens: float, priority: int) -> float:
    """What tokens count at a priority: twice as much for each level better than the default."""
    return float(tokens * 2.0 ** (DEFAULT_PRIORITY - priority))
