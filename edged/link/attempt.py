"""One attempt to connect: a separate paho client, its loop and its callbacks, until the connection ends.

Each attempt gets a new client, so that nothing of an old connection remains in the library's queues.
"""

from __future__ import annotations

import threading
import time
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
from edged.link.events import Acked, Arrived, Event, Up
from edged.link.inbound_budget import MAX_BYTES, InboundBudget
from edged.link.reachable import has_gone
from edged.link.tolerant_client import TolerantClient, UnreadableMessage

KEEP_ALIVE = 30
CONNACK_DEADLINE = 5.0
SUBACK_DEADLINE = 20.0  # seconds after CONNACK
SESSION_EXPIRY = 7 * 86400
MAX_PACKET = 17_000_000  # above any `limits.prompt_bytes`: the broker discards only what no setting allows
MAX_WINDOW = 20
SHUTTING_DOWN = 0x8B
TAKEN_OVER = 0x8E
_UNSUPPORTED_VERSIONS = (0x01, 0x84)  # of MQTT 3.1.1 and of MQTT 5
# Unspecified, implementation specific, packet identifier in use, quota exceeded: the broker may accept it later.
_TEMPORARY = frozenset({0x80, 0x83, 0x91, 0x97})
RECEIVE_MAXIMUM = 100
CATCH_UP_SECONDS = 3.0  # time for the agent to acknowledge, once too many bytes are unacknowledged
_EXCESS = (
    "the broker sent more unacknowledged data than this client allows; "
    "check the broker's in-flight and packet-size limits"
)


class Subscription(msgspec.Struct, frozen=True):
    """A topic filter, at QoS 1 or 0. `retained` True: the broker sends its retained messages at each subscribe.

    At QoS 0 the broker keeps nothing for a device that is offline, and its messages take no place of the Receive
    Maximum, whatever they were published with.
    """

    topic: str
    retained: bool
    qos: int = 1


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes, retained at QoS 1, when the connection is lost."""

    topic: str
    payload: bytes


class SessionOptions(msgspec.Struct, frozen=True):
    """The options that all attempts share. `persistent`: the broker keeps the session while the device is offline."""

    settings: Mqtt
    client_id: str
    will: Will | None
    subscriptions: tuple[Subscription, ...]
    persistent: bool
    receive_maximum: int = RECEIVE_MAXIMUM


class Ended(msgspec.Struct, frozen=True):
    """The result of one attempt. `reason` is a sentence for people, empty if the reason is not known.

    `answered`: a CONNACK came, with any reason code; `accepted`: with success. `silent`: none came in time.
    `up_for`: seconds from the last SUBACK to the end, None if there was no SUBACK. `restarted`: `give_up` ended it.
    `closed_by_broker`: the broker ended it after a SUBACK. `broker_gone`: the broker reported that it shuts down, or
    did not listen just after. `session_present`: the broker still had the earlier session, or none was requested.
    `excess`: the broker sent more unacknowledged data than allowed.
    """

    version: str
    reason: str
    answered: bool
    accepted: bool
    silent: bool
    version_refused: bool
    up_for: float | None
    taken_over: bool
    restarted: bool
    closed_by_broker: bool
    broker_gone: bool = False
    session_present: bool = True
    excess: bool = False


class Attempt:
    """See the module. The constructor only stores arguments; `run` connects and blocks until the end.

    `run` and paho's callbacks are on one thread, which owns the object. Any other thread may call `publish`,
    `acknowledge`, `subscribe`, `unsubscribe`, `give_up` and `disconnect`. `post` and `progress` (called at each turn of
    the loop) must not block.
    """

    def __init__(
        self,
        options: SessionOptions,
        session: int,
        version: str,
        post: Callable[[Event], None],
        clock: Callable[[], float],
        progress: Callable[[], None],
    ) -> None:
        self.session = session
        self.version = version
        self._options = options
        self._post = post
        self._clock = clock
        self._progress = progress
        self._client: mqtt.Client | None = None
        self._window = MAX_WINDOW
        self._max_packet: int | None = None
        self._up_since: float | None = None
        self._restart = False
        self._reason = ""
        self._answered = self._accepted = self._silent = False
        self._version_refused = self._taken_over = self._ended_by_peer = False
        self._shutting_down = self._excess = False
        self._budget = InboundBudget()
        self._stopping: threading.Event | None = None
        self._session_present = True

    # ---- for any thread ----------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        content_type: str | None,
        correlation: bytes | None,
    ) -> int | None:
        """Publish a message through paho; returns the packet id, or None if this attempt is not connected."""
        client = self._client
        if client is None or self._up_since is None:
            return None
        properties = None
        if self.version == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if content_type is not None:
                properties.ContentType = content_type
            if correlation is not None:
                properties.CorrelationData = correlation
        info = client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        return info.mid if info.rc == mqtt.MQTT_ERR_SUCCESS else None

    def acknowledge(self, message: Arrived) -> None:
        """Send the PUBACK of a message that arrived in this attempt."""
        client = self._client
        if message.qos > 0:
            self._budget.acknowledge(_held(message))
        if client is not None and message.qos > 0:
            client.ack(message.mid, message.qos)

    def subscribe(self, subscriptions: tuple[Subscription, ...]) -> None:
        """Add subscriptions to those of the connect; nothing where this attempt is not connected."""
        client = self._client
        if client is not None and self._up_since is not None:
            client.subscribe([(wanted.topic, self._subscribe_options(wanted)) for wanted in subscriptions])

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """End subscriptions, likewise."""
        client = self._client
        if client is not None and self._up_since is not None:
            client.unsubscribe(list(topics))

    def give_up(self, reason: str) -> None:
        """Make `run` end, with this reason."""
        self._reason = reason
        self._restart = True

    def disconnect(self) -> None:
        """Send DISCONNECT, if there is a socket."""
        client = self._client
        if client is not None:
            client.disconnect()

    # ---- the network thread ------------------------------------------------------------------------------------------

    def run(self, stopping: threading.Event) -> Ended:
        """Connect, and serve the connection until it ends or `stopping` is set; returns the result."""
        up_for: float | None = None
        self._stopping = stopping
        try:
            self._serve(stopping)
        except (OSError, ValueError, BrokerError) as error:
            self._reason = self._reason or in_words(error)
        except Exception as error:  # noqa: BLE001  - an exception in a callback must not end the network thread
            self._reason = f"internal error in edged's MQTT connection; please report it: {error!r}"
        finally:
            self._client = None
            if self._up_since is not None:
                up_for = self._clock() - self._up_since
        closed_by_broker = self._ended_by_peer and up_for is not None
        return Ended(
            version=self.version,
            reason=self._reason,
            answered=self._answered,
            accepted=self._accepted,
            silent=self._silent,
            version_refused=self._version_refused,
            up_for=up_for,
            taken_over=self._taken_over,
            restarted=self._restart,
            closed_by_broker=closed_by_broker,
            broker_gone=self._shutting_down or (closed_by_broker and self._broker_has_gone(stopping)),
            session_present=self._session_present,
            excess=self._excess,
        )

    def _broker_has_gone(self, stopping: threading.Event) -> bool:
        return not (stopping.is_set() or self._taken_over) and has_gone(*broker_address(self._options.settings.url))

    def _serve(self, stopping: threading.Event) -> None:
        client = self._make_client()
        host, port = broker_address(self._options.settings.url)
        self._client = client
        client.connect(host, port, keepalive=KEEP_ALIVE, **self._connect_options())
        if stopping.is_set():
            client.disconnect()  # a `disconnect` before there was a socket sent nothing
        self._loop(client)
        client.disconnect()
        if not stopping.is_set():
            client.loop(timeout=0.0)

    def _connect_options(self) -> dict[str, Any]:
        if self.version != "5":
            return {}
        persistent = self._options.persistent
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY if persistent else 0
        properties.ReceiveMaximum = self._options.receive_maximum
        properties.MaximumPacketSize = MAX_PACKET
        return {"clean_start": not persistent, "properties": properties}

    def _loop(self, client: TolerantClient) -> None:
        started = self._clock()
        connacked: float | None = None
        while (code := client.loop(timeout=0.5)) == mqtt.MQTT_ERR_SUCCESS:
            self._progress()
            now = self._clock()
            if connacked is None and client.is_connected():
                connacked = now
            if self._restart or self._is_overdue(now, started, connacked):
                break
        if client.too_large or client.too_many:
            self._excess, self._reason = True, _EXCESS
        # Any other code means that what came was malformed.
        self._ended_by_peer = code in (mqtt.MQTT_ERR_CONN_LOST, mqtt.MQTT_ERR_NO_CONN) and not self._excess

    def _is_overdue(self, now: float, started: float, connacked: float | None) -> bool:
        """Whether the broker did not answer in time; `_reason` then names the packet."""
        if connacked is None and now - started > CONNACK_DEADLINE:
            self._silent = True
            self._reason = "the broker does not answer CONNECT"
            return True
        if connacked is not None and self._up_since is None and now - connacked > SUBACK_DEADLINE:
            self._reason = "the broker does not answer SUBSCRIBE"
            return True
        return False

    def _make_client(self) -> TolerantClient:
        options, v5 = self._options, self.version == "5"
        client = TolerantClient(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if v5 else not options.persistent,
            protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_packet, client.max_held = MAX_PACKET, MAX_BYTES
        client.connect_timeout = CONNACK_DEADLINE
        client.max_queued_messages_set(0)
        configure_access(client, options.settings)
        if options.will is not None:
            client.will_set(options.will.topic, options.will.payload, qos=1, retain=True)
        # With this callback set, paho leaves all writing to the loop: two threads must never write to one socket.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    # ---- paho's callbacks, on the network thread: one that raises ends the attempt -----------------------------------

    def _on_connect(
        self, client: mqtt.Client, _data: Any, flags: Any, reason: Any, properties: Properties | None
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self._version_refused = reason.value in _UNSUPPORTED_VERSIONS
            self._reason = f"the broker refused the connection: {str(reason).lower()}"
            return
        self._accepted = True
        self._session_present = flags.session_present or not self._options.persistent
        self._window = min(MAX_WINDOW, getattr(properties, "ReceiveMaximum", 65535) or 65535)
        self._max_packet = getattr(properties, "MaximumPacketSize", None)
        if not self._options.subscriptions:
            self._become_up(())
            return
        client.subscribe([(wanted.topic, self._subscribe_options(wanted)) for wanted in self._options.subscriptions])

    def _subscribe_options(self, subscription: Subscription) -> Any:
        if self.version != "5":
            return subscription.qos
        handling = 0 if subscription.retained else 2
        return SubscribeOptions(qos=subscription.qos, retainAsPublished=True, retainHandling=handling)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        if self._up_since is not None:
            return  # of a subscription that was added later
        answers = zip(self._options.subscriptions, reasons, strict=False)
        self._become_up(tuple(wanted.topic for wanted, reason in answers if reason.is_failure))

    def _become_up(self, refused: tuple[str, ...]) -> None:
        self._up_since = self._clock()
        self._post(Up(self.session, self.version, self._window, self._max_packet, refused))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._taken_over = self._taken_over or reason.value == TAKEN_OVER
        self._shutting_down = self._shutting_down or reason.value == SHUTTING_DOWN
        if not self._reason and reason.is_failure:
            self._reason = f"the connection to the broker ended: {str(reason).lower()}"

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        unreadable = message.why if isinstance(message, UnreadableMessage) else None
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic, unreadable = "(topic is not valid UTF-8)", unreadable or "its topic is not valid UTF-8"
        properties = message.properties
        arrived = Arrived(
            session=self.session,
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
        if message.qos > 0:
            self._budget.receive(_held(arrived))
        self._post(arrived)
        if self._budget.exceeded:
            self._let_catch_up()

    def _let_catch_up(self) -> None:
        """Stop reading until enough is acknowledged; end the attempt if that takes too long."""
        until = time.monotonic() + CATCH_UP_SECONDS
        while self._budget.exceeded and not self._restart:
            if time.monotonic() > until:
                self._excess = True
                self.give_up(_EXCESS)
            elif self._stopping is None or self._stopping.wait(0.01):
                return

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        refused = str(reason).lower() if reason.is_failure else None
        self._post(Acked(self.session, mid, refused, temporary=reason.value in _TEMPORARY))


def _held(message: Arrived) -> int:
    """About how many bytes a message takes in memory until it is acknowledged."""
    return len(message.topic) + len(message.payload) + len(message.correlation or b"") + 500
