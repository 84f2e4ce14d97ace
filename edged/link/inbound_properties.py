"""Takes out of an MQTT 5 PUBLISH the properties that are not used here, before paho parses it.

paho copies the rest of the packet for each property, so a packet of many costs time with the square of its size: 1 MB
of empty user properties, which any user of the broker may send, keeps the network thread busy for minutes. Each of the
other properties is allowed once, which bounds their number.
"""

from __future__ import annotations

from typing import Final

_USER_PROPERTY, _SUBSCRIPTION_ID = 0x26, 0x0B  # may be repeated
# Bytes of the value by identifier (MQTT 5, table 2-4); None: two bytes of length, then as many.
_SIZES: Final[dict[int, int | None]] = {0x01: 1, 0x02: 4, 0x03: None, 0x08: None, 0x09: None, 0x23: 2}


def without_repeatable(command: int, packet: bytearray) -> bytearray:
    """The body of a PUBLISH without user properties and subscription identifiers, in time linear in its length.

    `packet` is what follows the fixed header, `command` the first byte of that. Raises ValueError or IndexError where
    the properties cannot be read.
    """
    at = 2 + int.from_bytes(packet[:2], "big") + (2 if command & 0b110 else 0)
    length, begin = _variable_integer(packet, at)
    end = begin + length
    if end > len(packet):
        raise ValueError("its properties are cut short")
    kept = bytearray()
    position = begin
    while position < end:
        identifier, after = packet[position], _after(packet, position)
        if after > end:
            raise ValueError("a property is cut short")
        if identifier not in (_USER_PROPERTY, _SUBSCRIPTION_ID):
            kept += packet[position:after]
        position = after
    if len(kept) == length:
        return packet
    return packet[:at] + _encoded(len(kept)) + kept + packet[end:]


def _after(packet: bytearray, position: int) -> int:
    """Where the property that begins at `position` ends."""
    identifier, value = packet[position], position + 1
    if identifier == _USER_PROPERTY:
        name_end = _after_text(packet, value)
        end = _after_text(packet, name_end)
        _check_text(packet[value + 2 : name_end])
        _check_text(packet[name_end + 2 : end])
        return end
    if identifier == _SUBSCRIPTION_ID:
        return _variable_integer(packet, value)[1]
    if identifier not in _SIZES:
        raise ValueError(f"property {identifier} does not belong in a PUBLISH")
    size = _SIZES[identifier]
    return _after_text(packet, value) if size is None else value + size


def _after_text(packet: bytearray, at: int) -> int:
    return at + 2 + (packet[at] << 8 | packet[at + 1])


def _check_text(encoded: bytearray) -> None:
    """Raises ValueError for what must not be in a text (MQTT 5, 1.5.4), as paho does for those that are left to it."""
    text = encoded.decode("utf-8")
    if "\0" in text or "\ufeff" in text:
        raise ValueError("a user property contains NUL or a byte order mark (U+FEFF)")


def _variable_integer(packet: bytearray, at: int) -> tuple[int, int]:
    """The value, and where it ends."""
    value = 0
    for count in range(4):
        value |= (packet[at + count] & 0x7F) << 7 * count
        if packet[at + count] < 0x80:
            return value, at + count + 1
    raise ValueError("a length has more than four bytes")


def _encoded(value: int) -> bytearray:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return digits
