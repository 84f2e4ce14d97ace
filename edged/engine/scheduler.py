"""Who is computed next.

- Only the best priority class that has sequences is served.
- Within it, sequences take turns: a chunk of one prompt, then one token for each that decodes, and so on; prompts take
  turns chunk by chunk.
- A cache (slot) is given in order of arrival. Where none is free, a sequence of a worse class gives its own up at once,
  one of the same class after its quantum; it goes to the end of the line and is computed again later from its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edged.engine.sequence import Sequence

QUANTUM: Final = 32  # tokens chosen before a sequence may lose its slot to one of its own class


class Scheduler:
    """The sequences and their slots. `open_slot` and `close_slot` make and drop a cache, at most `slots` at once."""

    def __init__(self, slots: int, open_slot: Callable[[], int], close_slot: Callable[[int], None]) -> None:
        self._slots = slots
        self._open = open_slot
        self._close = close_slot
        self._line: list[Sequence] = []  # all sequences; those without a slot wait in this order
        self._prefilled_last = False

    def __len__(self) -> int:
        return len(self._line)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the end of the line."""
        self._line.append(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Forgets a sequence and drops its cache."""
        self._line.remove(sequence)
        self._release(sequence)

    def all(self) -> list[Sequence]:
        """Every sequence."""
        return list(self._line)

    def schedule(self) -> list[Sequence]:
        """The sequences to compute one slice of: one that prefills, or all of the class that decode; [] without any."""
        if not self._line:
            return []
        best = min(sequence.request.priority for sequence in self._line)
        members = [sequence for sequence in self._line if sequence.request.priority == best]
        self._give_slots([sequence for sequence in members if sequence.slot is None])
        running = [sequence for sequence in members if sequence.slot is not None]
        prefilling = [sequence for sequence in running if sequence.prefilling]
        decoding = [sequence for sequence in running if not sequence.prefilling]
        self._prefilled_last = bool(prefilling) and not (decoding and self._prefilled_last)
        if not self._prefilled_last:
            return decoding
        self._to_the_end(prefilling[0])
        return prefilling[:1]

    def _give_slots(self, waiting: list[Sequence]) -> None:
        for sequence in waiting:
            if self._open_slots() >= self._slots:
                loser = self._loser(sequence.request.priority)
                if loser is None:
                    return
                self._release(loser)
                self._to_the_end(loser)
            sequence.slot = self._open()
            sequence.served = 0

    def _loser(self, priority: int) -> Sequence | None:
        """Who gives up a slot for a sequence of that priority: the worst class first, then who was served longest."""
        holders = [
            sequence
            for sequence in self._line
            if sequence.slot is not None
            and (sequence.request.priority > priority or sequence.served >= quantum(sequence.computed))
        ]
        return max(holders, key=lambda sequence: (sequence.request.priority, sequence.served), default=None)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._close(sequence.slot)
            sequence.slot = None
            sequence.computed = 0

    def _open_slots(self) -> int:
        return sum(sequence.slot is not None for sequence in self._line)

    def _to_the_end(self, sequence: Sequence) -> None:
        self._line.remove(sequence)
        self._line.append(sequence)


def quantum(computed: int) -> int:
    """Tokens that a sequence may choose before it gives way: more for a long one, which costs more to compute again."""
    return max(QUANTUM, computed // 4)
