"""One device's connection to its broker: MQTT 5 first, 3.1.1 where the broker demands it, back-off with full jitter.

A thread of this room owns the paho client and runs its loop; every attempt gets a client of its own, so that nothing of
an old connection survives in a library's queue. Callbacks only hand events to `post`, which must not block. `publish`,
`acknowledge` and `restart` may be called from any thread.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.config.schema import Mqtt
from edged.core.errors import BrokerError
from edged.link.access import broker_address, configure_access, in_words
from edged.link.tolerant_client import TolerantClient, UnreadableMessage

KEEP_ALIVE = 30
CONNACK_DEADLINE = 5.0
SUBACK_DEADLINE = 20.0  # from CONNACK on; without it a broker that never answers would be waited for for ever
SILENT_CONNECTS = 3  # CONNECTs of v5 without any CONNACK before 3.1.1 is tried
SESSION_EXPIRY = 7 * 86400
BACK_OFF_CAP = 60.0
TAKEN_OVER = 0x8E
TAKE_OVER_BACK_OFF = (120.0, 300.0)  # seconds; another board uses this name
MAX_PACKET = 17_000_000  # above any `limits.prompt_bytes`: the broker discards only what no setting takes
_UNSUPPORTED_VERSION = 0x84
# Unspecified, implementation specific, packet identifier in use, quota exceeded: the same message may be taken later.
_TEMPORARY = frozenset({0x80, 0x83, 0x91, 0x97})
_RECEIVE_MAXIMUM = 100


class Subscription(msgspec.Struct, frozen=True):
    """A topic filter at QoS 1. `retained` True: the broker sends what it keeps at each subscribe."""

    topic: str
    retained: bool


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes, retained at QoS 1, when we vanish."""

    topic: str
    payload: bytes


class Up(msgspec.Struct, frozen=True):
    """Connected and subscribed. `version` is `5` or `3.1.1`; `window` bounds unacknowledged publishes."""

    session: int
    version: str
    window: int
    max_packet: int | None
    refused: tuple[str, ...]


class Down(msgspec.Struct, frozen=True):
    """Not connected: `reason` is a sentence for people. `retry_in` seconds until the next attempt.

    `hung_up`: a connection that was up ended, neither by us nor in words for another board of our name.
    """

    reason: str
    retry_in: float
    taken_over: bool
    hung_up: bool = False


class Arrived(msgspec.Struct, frozen=True):
    """A message. `mid` is to be acknowledged on the same `session` where `qos` is above 0.

    `unreadable`: why only its topic could be read. Such a one has an empty payload, which means nothing.
    """

    session: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    content_type: str | None = None
    unreadable: str | None = None


class Acked(msgspec.Struct, frozen=True):
    """The broker confirmed a publish at QoS 1, or one at QoS 0 was written.

    `refused`: its reason for not taking it; `temporary`: it may take the same message later.
    """

    session: int
    mid: int
    refused: str | None = None
    temporary: bool = False


Event = Up | Down | Arrived | Acked


class Connection:
    """See the module. The constructor assigns; `start` and `stop` do.

    `persistent`: the broker keeps subscriptions and messages for us while we are away; without, every start is clean.
    """

    def __init__(
        self,
        settings: Mqtt,
        client_id: str,
        will: Will | None,
        subscriptions: tuple[Subscription, ...],
        post: Callable[[Event], None],
        *,
        persistent: bool = True,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._subscriptions = subscriptions
        self._post = post
        self._persistent = persistent
        self._clock = clock
        self._chance = chance
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._client: mqtt.Client | None = None
        self._session = 0
        self._version = "3.1.1" if settings.version == "3.1.1" else "5"
        self._v5_accepted = False
        self._silent = 0
        self._failures = 0
        self._drops: deque[float] = deque(maxlen=4)
        # What the current attempt learned; written by the network thread alone.
        self._up_since: float | None = None
        self._reason = ""
        self._refused_version = False
        self._taken_over = False
        self._restart = False
        self._hung_up = False
        self._beat = clock()
        self._resting = False

    def idle_for(self) -> float:
        """Seconds since the network thread last showed progress; waiting for the next attempt counts as progress."""
        return 0.0 if self._resting else self._clock() - self._beat

    def start(self) -> None:
        """Begin to connect, and go on for ever."""
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Disconnect cleanly (the broker drops the will) and end the thread."""
        self._stopping.set()
        self._wake.set()
        client = self._client
        if client is not None:
            client.disconnect()
        if self._thread is not None:
            self._thread.join(timeout)

    def restart(self, reason: str) -> None:
        """Give the current connection up and make another: used when the broker stops answering."""
        self._reason = reason
        self._restart = True

    def publish(
        self,
        session: int,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        content_type: str | None = None,
        correlation: bytes | None = None,
    ) -> int | None:
        """Hand a publish to the network thread; gives the packet id, or None where that session is no longer up."""
        client = self._client
        if client is None or session != self._session or self._up_since is None:
            return None
        properties = None
        if self._version == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if content_type is not None:
                properties.ContentType = content_type
            if correlation is not None:
                properties.CorrelationData = correlation
        info = client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        return info.mid if info.rc == mqtt.MQTT_ERR_SUCCESS else None

    def acknowledge(self, message: Arrived) -> None:
        """Send the PUBACK, on the connection that delivered the message and on no other."""
        client = self._client
        if message.qos > 0 and client is not None and message.session == self._session:
            client.ack(message.mid, message.qos)

    # ---- the network thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._one_connection()
            except (OSError, ValueError, ssl.SSLError, BrokerError) as error:
                self._reason = self._reason or in_words(error)
            except Exception as error:  # noqa: BLE001  - a callback that raises must not end the only road to the device
                self._reason = f"a defect in the connection, please report it: {error!r}"
            if self._stopping.is_set():
                break
            wait, taken_over = self._judge()
            reason = self._reason or "the broker closed the connection"
            self._post(Down(reason, wait, taken_over, hung_up=self._hung_up and not self._taken_over))
            self._resting = True
            self._wake.wait(wait)
            self._resting, self._beat = False, self._clock()

    def _one_connection(self) -> None:
        self._up_since, self._reason, self._refused_version = None, "", False
        self._taken_over, self._restart, self._hung_up = False, False, False
        self._session += 1
        client = self._make_client()
        host, port = broker_address(self._settings.url)
        options: dict[str, Any] = {}
        if self._version == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY if self._persistent else 0
            properties.ReceiveMaximum = _RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET
            options = {"clean_start": not self._persistent, "properties": properties}
        self._client = client
        try:
            client.connect(host, port, keepalive=KEEP_ALIVE, **options)
            if self._stopping.is_set():
                client.disconnect()  # what `stop` said before there was a socket was said to no one
            self._loop(client)
        finally:
            self._client = None
            self._up_since, was_up = None, self._up_since
            self._hung_up = self._hung_up and was_up is not None
            if was_up is not None:
                self._failures = 0 if self._clock() - was_up > BACK_OFF_CAP / 2 else self._failures
                self._drops.append(self._clock())
            else:
                self._drops.clear()  # it is the broker that goes and comes, not another board that takes our name

    def _loop(self, client: mqtt.Client) -> None:
        started = self._clock()
        connacked: float | None = None
        while (code := client.loop(timeout=0.5)) == mqtt.MQTT_ERR_SUCCESS:
            self._beat = self._clock()
            if connacked is None and client.is_connected():
                connacked = self._beat
            if self._restart or self._waited_too_long(started, connacked):
                break
        self._hung_up = code in (mqtt.MQTT_ERR_CONN_LOST, mqtt.MQTT_ERR_NO_CONN)  # not: what came was malformed
        client.disconnect()
        if not self._stopping.is_set():
            client.loop(timeout=0.0)

    def _waited_too_long(self, started: float, connacked: float | None) -> bool:
        """Whether the broker owes us an answer for longer than we wait; gives the reason to `_reason`."""
        if connacked is None and self._beat - started > CONNACK_DEADLINE:
            self._silent += 1
            self._reason = "the broker does not answer CONNECT"
            return True
        if connacked is not None and self._up_since is None and self._beat - connacked > SUBACK_DEADLINE:
            self._reason = "the broker does not answer SUBSCRIBE"
            return True
        return False

    def _make_client(self) -> mqtt.Client:
        v5 = self._version == "5"
        client = TolerantClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if v5 else not self._persistent,
            protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNACK_DEADLINE
        client.max_queued_messages_set(0)
        configure_access(client, self._settings)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        # With this callback set, paho leaves all writing to the loop: two threads must never write to one socket.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _judge(self) -> tuple[float, bool]:
        """Seconds to wait before the next attempt, and whether another board uses our name."""
        if self._refused_version and self._settings.version == "auto" and self._version == "5":
            self._version = "3.1.1"
            return 0.0, False
        silent = self._silent >= SILENT_CONNECTS and not self._v5_accepted
        if silent and self._settings.version == "auto" and self._version == "5":
            self._version, self._silent = "3.1.1", 0
            return 0.0, False
        dropped_often = len(self._drops) == self._drops.maxlen and self._clock() - self._drops[0] < 60
        if self._taken_over or (dropped_often and not self._restart):
            self._drops.clear()
            self._reason = "another board uses this name; give each board its own identity.device"
            return self._chance(*TAKE_OVER_BACK_OFF), True
        self._failures += 1
        return self._chance(0, min(BACK_OFF_CAP, 2.0 ** min(self._failures - 1, 6))), False

    # ---- paho's callbacks: they must not raise, or the loop would end -----------------------------------------------

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, properties: Properties | None
    ) -> None:
        self._silent = 0
        if reason.is_failure:
            self._refused_version = reason.value in (1, _UNSUPPORTED_VERSION)
            self._reason = f"the broker refuses us: {str(reason).lower()}"
            return
        self._v5_accepted = self._v5_accepted or self._version == "5"
        window = min(20, getattr(properties, "ReceiveMaximum", 65535) or 65535)
        self._window, self._max_packet = window, getattr(properties, "MaximumPacketSize", None)
        if not self._subscriptions:
            self._become_up(())
            return
        client.subscribe([(s.topic, self._options(s)) for s in self._subscriptions])

    def _options(self, subscription: Subscription) -> Any:
        if self._version != "5":
            return 1
        return SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=0 if subscription.retained else 2)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        refused = tuple(s.topic for s, r in zip(self._subscriptions, reasons, strict=False) if r.is_failure)
        self._become_up(refused)

    def _become_up(self, refused: tuple[str, ...]) -> None:
        self._up_since = self._clock()
        self._failures = 0 if not self._drops else self._failures
        self._post(Up(self._session, self._version, self._window, self._max_packet, refused))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._taken_over = self._taken_over or reason.value == TAKEN_OVER
        if not self._reason and reason.is_failure:
            self._reason = f"the connection to the broker ended: {str(reason).lower()}"

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        unreadable = message.why if isinstance(message, UnreadableMessage) else None
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic, unreadable = "one that is no UTF-8", unreadable or "its topic is no UTF-8"
        properties = message.properties
        self._post(
            Arrived(
                session=self._session,
                topic=topic,
                payload=bytes(message.payload) if unreadable is None else b"",
                qos=message.qos,
                retain=message.retain,
                mid=message.mid,
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
                expiry_s=getattr(properties, "MessageExpiryInterval", None),
                content_type=getattr(properties, "ContentType", None),
                unreadable=unreadable,
            )
        )

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        refused = str(reason).lower() if reason.is_failure else None
        self._post(Acked(self._session, mid, refused, temporary=reason.value in _TEMPORARY))
