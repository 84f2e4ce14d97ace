"""The one connection to the broker: its thread's events in the event loop, and the replies to each prompt.

Everything but `_post` runs in the event loop, which owns the object.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable
from typing import Any, Final

from edged.config.schema import Mqtt
from edged.core.errors import BrokerError
from edged.link.attempt import Subscription
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Event, Up
from edged.serve.fleet_state import FleetState

RETAINED_WITHIN: Final = 0.8  # seconds in which a broker delivers retained messages
CONFIRM_WITHIN: Final = 10.0  # seconds for the broker's PUBACK
MAX_REPLY: Final = 4_000_000  # bytes of one final that is read; nothing larger is handed to the event loop
MAX_CHUNK: Final = 100_000  # bytes of any other reply
MAX_QUEUED: Final = 64  # replies to a prompt whose client does not read; the final has the whole text

Reply = dict[str, Any]


class Broker:
    """See the module. `requester` names us in the topics. `changed` is called after each message about the fleet."""

    def __init__(self, settings: Mqtt, state: FleetState, requester: str, changed: Callable[[], None]) -> None:
        self.requester = requester
        self.state = state
        self.problem = "not connected yet"  # why nothing can be sent now; empty where all is well
        self.refused: tuple[str, ...] = ()  # subscriptions that the broker's access list refuses
        self._root = f"edged/v1/{state.fleet}/"
        self._changed = changed
        self._replies: dict[tuple[str, str], asyncio.Queue[Reply]] = {}  # by device and id
        self._confirmations: dict[int, asyncio.Future[None]] = {}
        self.session = 0  # the connection in use
        self._settled = asyncio.Event()  # the retained messages of this connection have arrived
        self._loop: asyncio.AbstractEventLoop | None = None
        topics = (*state.subscriptions(), f"{self._root}reply/{requester}/+/+")
        client_id = f"edgectl-serve-{os.getpid()}-{secrets.token_hex(4)}"
        subscriptions = tuple(Subscription(topic, retained=True) for topic in topics)
        self._connection = Connection(settings, client_id, None, subscriptions, self._post, persistent=False)

    def start(self) -> None:
        """Begin to connect, and go on until `stop`."""
        self._loop = asyncio.get_running_loop()
        self._connection.start()

    def stop(self) -> None:
        """Disconnect."""
        self._connection.stop()

    async def settle(self) -> None:
        """Wait until the fleet is known: a moment after the first connection. Returns at once where there is none."""
        if not self.problem:
            await self._settled.wait()

    def subscribe(self, device: str, prompt_id: str) -> asyncio.Queue[Reply]:
        """A queue of a device's replies to one prompt, until `unsubscribe`."""
        return self._replies.setdefault((device, prompt_id), asyncio.Queue())

    def unsubscribe(self, device: str, prompt_id: str) -> None:
        """End it."""
        self._replies.pop((device, prompt_id), None)

    async def publish(self, topic: str, document: Any, *, retain: bool = False) -> None:
        """Publish at QoS 1 (bytes as they are, anything else as JSON) and wait for the PUBACK. Raises BrokerError."""
        payload = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
        if self.problem:
            raise BrokerError(f"the broker cannot be reached: {self.problem}")
        mid = self._connection.publish(
            self.session, topic, payload, qos=1, retain=retain, content_type="application/json"
        )
        if mid is None:
            raise BrokerError("the connection to the broker ended; try again")
        confirmed = self._confirmations.setdefault(mid, asyncio.get_running_loop().create_future())
        try:
            await asyncio.wait_for(confirmed, CONFIRM_WITHIN)
        except asyncio.TimeoutError:
            raise BrokerError("the broker did not confirm the message") from None
        finally:
            self._confirmations.pop(mid, None)

    def _post(self, event: Event) -> None:
        """On the network thread: acknowledge, and hand over to the loop."""
        if isinstance(event, Arrived):
            self._connection.acknowledge(event)
            if len(event.payload) > MAX_REPLY:
                return
        assert self._loop is not None  # noqa: S101 `start` set it
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._apply, event)

    def _apply(self, event: Event) -> None:
        if isinstance(event, Arrived):
            self._take(event)
        elif isinstance(event, Acked):
            self._confirm(event)
        elif isinstance(event, Up):
            self.session, self.problem, self.refused = event.session, "", event.refused
            asyncio.get_running_loop().call_later(RETAINED_WITHIN, self._settled.set)
            self._changed()
        elif isinstance(event, Down):
            self.problem = event.reason or "the connection ended"
            self._settled.clear()
            self._fail_confirmations()
            self._changed()

    def _take(self, message: Arrived) -> None:
        if message.unreadable is not None:
            return
        prefix = f"{self._root}reply/{self.requester}/"
        if not message.topic.startswith(prefix):
            self.state.apply(message.topic, message.payload)
            self._changed()
            return
        device, _, prompt_id = message.topic[len(prefix) :].partition("/")
        waiting = self._replies.get((device, prompt_id))
        reply = None if waiting is None else read_reply(message.payload, prompt_id)
        if waiting is None or reply is None:
            return
        if reply.get("final") is True or waiting.qsize() < MAX_QUEUED:
            waiting.put_nowait(reply)

    def _confirm(self, event: Acked) -> None:
        # The PUBACK may come before `publish` has registered its future: the network thread is another one.
        confirmed = self._confirmations.get(event.mid)
        if confirmed is None:
            if event.session == self.session:
                self._confirmations[event.mid] = confirmed = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(CONFIRM_WITHIN, self._confirmations.pop, event.mid, None)
            else:
                return
        if confirmed.done():
            return
        if event.refused:
            confirmed.set_exception(BrokerError(f"the broker refused the message: {event.refused}"))
            confirmed.exception()  # read here too: a future that nobody awaits is not logged
        else:
            confirmed.set_result(None)

    def _fail_confirmations(self) -> None:
        for confirmed in self._confirmations.values():
            if not confirmed.done():
                confirmed.set_exception(BrokerError("the connection to the broker ended; try again"))
                confirmed.exception()
        self._confirmations.clear()


def read_reply(payload: bytes, prompt_id: str) -> Reply | None:
    """A reply to this prompt, None for anything else that was published there."""
    if len(payload) > MAX_REPLY:
        return None
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("id") != prompt_id:
        return None
    return document if document.get("final") is True or len(payload) <= MAX_CHUNK else None
