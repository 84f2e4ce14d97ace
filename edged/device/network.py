"""Bytes in and out over the interface of the default route.

Sources: proc(5) for /proc/net/route and /proc/net/dev; kernel net/ipv6/route.c (`rt6_info_route`) for
/proc/net/ipv6_route.
"""

from __future__ import annotations

from pathlib import Path

from edged.core.reading import Network
from edged.device.files import GarbageError, integer, plain_name, read_head

_UP, _REJECT = 0x1, 0x200
_LIMIT = 65536


def network(root: Path) -> Network | None:
    """The counters of the default route's interface; None while there is no default route."""
    interface = default_interface(root)
    if interface is None:
        return None
    for line in read_head(f"{root}/proc/net/dev", _LIMIT).split("\n")[2:]:
        name, colon, rest = line.partition(":")
        if colon and name.strip() == interface:
            words = rest.split()  # eight figures of what was received, then eight of what was sent; bytes come first
            if len(words) < 16:
                raise GarbageError("/proc/net/dev has too few columns")
            high = 2**64 - 1
            return Network(plain_name(interface), integer(words[0], 0, high), integer(words[8], 0, high))
    return None


def default_interface(root: Path) -> str | None:
    """The interface of the default route with the smallest metric, IPv4 before IPv6."""
    routes = []
    for line in read_head(f"{root}/proc/net/route", _LIMIT).split("\n")[1:]:
        # Iface Destination Gateway Flags RefCnt Use Metric Mask …, addresses and flags in hexadecimal
        words = line.split()
        if len(words) >= 8 and words[1] == words[7] == "00000000" and _usable(words[3]):
            routes.append((integer(words[6], 0, 2**32), words[0]))
    return min(routes)[1] if routes else _default_interface6(root)


def _default_interface6(root: Path) -> str | None:
    try:
        text = read_head(f"{root}/proc/net/ipv6_route", _LIMIT)
    except FileNotFoundError:
        return None
    routes = []
    for line in text.split("\n"):
        # destination, its length, source, its length, next hop, metric, references, uses, flags, device
        words = line.split()
        if len(words) >= 10 and words[1] == "00" and words[0] == "0" * 32 and words[9] != "lo" and _usable(words[8]):
            routes.append((_hexadecimal(words[5]), words[9]))
    return min(routes)[1] if routes else None


def _usable(flags: str) -> bool:
    return _hexadecimal(flags) & (_UP | _REJECT) == _UP


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise GarbageError(f"{text[:32]!r} is not a hexadecimal number") from None
