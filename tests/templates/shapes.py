"""Chat templates in the shapes that models use, all written for these tests; variants by switches.

A marker `@name@` in a source is replaced by each value of that switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from tests.templates import agents, plain, thinking

Source = str | Mapping[str, str]
Switches = Mapping[str, Mapping[str, str]]


def variants(name: str, source: str, switches: Switches) -> dict[str, str]:
    """Every combination of the switches, named by their values; a value without a name adds none."""
    found = {}
    for chosen in product(*(values.items() for values in switches.values())):
        made = source
        for switch, (_, text) in zip(switches, chosen, strict=True):
            made = made.replace(f"@{switch}@", text)
        found["-".join([name, *(label for label, _ in chosen if label)])] = made
    return found


SHAPES: dict[str, Source] = {
    made: source
    for family in (plain, thinking, agents)
    for name, (text, switches) in family.FAMILIES.items()
    for made, source in variants(name, text, switches).items()
}
SHAPES |= agents.NAMED
