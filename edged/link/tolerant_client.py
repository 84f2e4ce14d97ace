"""A paho client that continues after a message which it cannot read."""

from __future__ import annotations

import struct

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MQTTException

from edged.link.inbound_properties import without_repeatable

_CANNOT_READ = (MQTTException, ValueError, IndexError, KeyError, struct.error)  # paho 2.1 lets all of these through


class UnreadableMessage(mqtt.MQTTMessage):
    """A message that could not be read. It is handed to `on_message` like any other; `why` says what is wrong."""

    why: str


class TolerantClient(mqtt.Client):
    """Hands an `UnreadableMessage` to `on_message`, to be acknowledged there like any other.

    paho ends the connection at a string that it refuses (U+FEFF, which brokers accept). The message is then never
    acknowledged, so the broker sends it again after each reconnect: one such message, retained on a topic of the whole
    fleet, would keep every board off the broker.

    A packet above `max_packet` bytes, or more than `max_held` bytes of messages at QoS 2 that wait for the broker's
    PUBREL, end the connection; `too_large` or `too_many` is then set.
    """

    max_packet = 2**28
    max_held = 2**28
    too_large = False
    too_many = False

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._in_packet["have_remaining"] and self._in_packet["remaining_length"] > self.max_packet:
            self.too_large = True
            raise ConnectionAbortedError("the broker sent a packet above the Maximum Packet Size of this client")
        return super()._sock_recv(bufsize)

    def _handle_publish(self) -> MQTTErrorCode:
        if self._in_packet["command"] & 0x04:
            with self._in_message_mutex:
                held = sum(len(message.payload) + 500 for message in self._in_messages.values())
            if held > self.max_held:
                self.too_many = True
                return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            if self._protocol == mqtt.MQTTv5:
                received = self._in_packet
                received["packet"] = without_repeatable(received["command"], received["packet"])
            return super()._handle_publish()
        except _CANNOT_READ as error:
            message = _unreadable(self._in_packet["command"], bytes(self._in_packet["packet"]), str(error))
            if message is None:
                raise
        if message.qos < 2:
            self._handle_on_message(message)
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        # As paho does: the PUBREL that answers brings the message to `on_message`.
        with self._in_message_mutex:
            self._in_messages[message.mid] = message
        return self._send_pubrec(message.mid)


def _unreadable(command: int, packet: bytes, why: str) -> UnreadableMessage | None:
    """What can be read of a PUBLISH: its topic and packet id. None where not even these are there."""
    qos = command >> 1 & 3
    topic_end = 2 + int.from_bytes(packet[:2], "big")
    end = topic_end + (2 if qos else 0)
    if len(packet) < end or qos == 3:
        return None
    message = UnreadableMessage(int.from_bytes(packet[topic_end:end], "big"), packet[2:topic_end])
    message.qos, message.why = qos, why
    return message
