"""The device as a member of pools: a second, clean connection whose shared subscriptions bring prompts for any member.

Owned by the agent's main thread. A prompt that arrives here is judged, stored and answered like any other; it is
acknowledged once it is stored. While the device has no capacity for it, it is held unacknowledged and the device
leaves; while it accepts no prompts at all it closes the connection, so that the broker may give what was not
acknowledged to another member. Not every broker does: the requester sends a prompt again until it is accepted.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable

import msgspec

from edged.agent import logs
from edged.agent.admission import Admission
from edged.agent.events import FromPool
from edged.config.schema import Mqtt
from edged.core.health import Finding
from edged.link.attempt import Subscription
from edged.link.connection import Connection
from edged.link.events import Arrived, Down, Up
from edged.link.outbound import Outbound
from edged.wire.topics import Topics

RECEIVE_MAXIMUM = 10  # prompts of pools that may be held
_RETURN_AT = 0.75  # share of a full queue at which the device returns
_FAILURES = 3  # of the second connection, after which they are a finding; a restart of the broker is none
_FULL = "the queue is full"
_HOT = ("temperature_high", "throttled")
_VERSION = "prompts of pools need MQTT 5, and this broker speaks 3.1.1; use another broker, or remove identity.pools"


class MemberFacts(msgspec.Struct, frozen=True):
    """What decides whether the device is a member now.

    `unavailable`: why no prompt is accepted; `limit`: of open prompts; `findings`: their codes.
    """

    connected: bool
    unavailable: str | None
    online: bool
    trial: bool
    findings: tuple[str, ...]
    open: int
    limit: int


def reason_to_leave(facts: MemberFacts, *, joined: bool, held: int) -> str | None:
    """Why the device should be no member now; None: it should be one. One that left for a full queue returns later."""
    hot = [code for code in facts.findings if code in _HOT]
    full_at = facts.limit if joined else min(facts.limit, _RETURN_AT * facts.limit + 1)
    reasons = (
        None if facts.connected else "there is no connection to the broker",
        facts.unavailable,
        None if facts.online else "the model is being loaded",
        "a config layer is on trial" if facts.trial else None,
        f"the finding {hot[0]} holds" if hot else None,
        _FULL if held or facts.open >= full_at else None,
    )
    return next((reason for reason in reasons if reason is not None), None)


class Pools:
    """See the module. `connect` makes a connection, `post` gets its events; `facts` are those of now."""

    def __init__(
        self,
        topics: Topics,
        settings: Mqtt,
        admission: Admission,
        outbound: Outbound,
        connect: Callable[..., Connection],
        post: Callable[[FromPool], None],
        facts: Callable[[], MemberFacts],
        mqtt_version: Callable[[], str],
    ) -> None:
        self._topics = topics
        self._settings = msgspec.structs.replace(settings, version="5")
        self._admission = admission
        self._outbound = outbound
        self._connect = connect
        self._post = post
        self._facts = facts
        self._mqtt_version = mqtt_version
        self._subscriptions = tuple(Subscription(topic, retained=False) for topic in topics.pools)
        self._generation = 0
        self._connection: Connection | None = None
        self._session: int | None = None
        self._held: deque[tuple[str, Arrived]] = deque()
        self._refused: tuple[str, ...] = ()
        self._down = ""
        self._failures = 0  # connections in a row that ended or were not made
        self._trouble: tuple[str, str] | None = None
        self._was_full = False
        self._log = logs.logger()
        self.joined = False

    def findings(self, now: float, known: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Why the device cannot be a member, if the broker is the cause. A finding keeps the `since` of before."""
        if self._trouble is None:
            return ()
        since = {finding.code: finding.since for finding in known}
        code, advice = self._trouble
        return (Finding(code, since.get(code, now), None, None, advice),)

    def tick(self) -> bool:
        """Accept what was held, then join or leave; returns whether the findings have changed."""
        if not self._subscriptions:
            return False
        before, self._trouble = self._trouble, self._trouble_now()
        self._accept_held()
        facts = self._facts()
        why = reason_to_leave(facts, joined=self.joined, held=len(self._held))
        too_old = self._mqtt_version() == "3.1.1"
        if too_old:
            why = "the broker speaks MQTT 3.1.1"
        if why is None and not self.joined:
            self._join()
        elif why is not None and self.joined:
            self._leave(why)
        if too_old or facts.unavailable is not None:
            self._close()
        return self._trouble != before

    def process(self, event: FromPool) -> None:
        """An event of the second connection; those of an earlier one are ignored."""
        if event.generation != self._generation or self._connection is None:
            return
        match event.event:
            case Up() as up:
                self._session, self._refused, self._failures = up.session, up.refused, 0
                if not self.joined:
                    self._connection.unsubscribe(up.session, self._topics.pools)
            case Down() as down:
                self._session, self._down = None, down.reason
                self._failures += 1
                self._held.clear()  # of a clean session, which has ended
            case Arrived() as message:
                self._arrived(message)

    def stop(self) -> None:
        """Leave, and close the connection; waits for its end."""
        self._close(timeout=2.0)

    def _trouble_now(self) -> tuple[str, str] | None:
        if self._mqtt_version() == "3.1.1":
            return "pool_needs_mqtt_5", _VERSION
        if self._connection is not None and self._session is not None and self._refused:
            topic = self._refused[0]
            return "pool_refused", f"the broker refuses the subscription to {topic}; allow shared subscriptions to it"
        if self._connection is not None and self._failures >= _FAILURES and self._facts().connected:
            return "pool_refused", f"the second connection, for pools, fails: {self._down}"
        return None

    def _join(self) -> None:
        self.joined = True
        if self._connection is None:
            self._generation += 1
            generation = self._generation
            self._failures, self._refused = 0, ()
            self._connection = self._connect(
                self._settings,
                f"edged-{self._topics.fleet}-{self._topics.device}.pool",  # no device's name has a dot
                None,
                self._subscriptions,
                lambda event: self._post(FromPool(generation, event)),
                persistent=False,
                receive_maximum=RECEIVE_MAXIMUM,
            )
            self._connection.start()
        elif self._session is not None:
            self._connection.subscribe(self._session, self._subscriptions)
        self._log_change("joined its pools", None)

    def _leave(self, why: str) -> None:
        self.joined = False
        if self._connection is not None and self._session is not None:
            self._connection.unsubscribe(self._session, self._topics.pools)
        self._log_change("left its pools", why)
        self._was_full = why == _FULL

    def _log_change(self, what: str, why: str | None) -> None:
        """A line for people; a full queue comes and goes with each few prompts."""
        log = self._log.debug if why == _FULL or (why is None and self._was_full) else self._log.info
        log(what, reason=why)

    def _close(self, timeout: float = 0.0) -> None:
        """End the connection without acknowledging what is held."""
        connection, self._connection, self._session = self._connection, None, None
        self.joined = False
        self._held.clear()
        if connection is not None:
            connection.stop(timeout)

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _arrived(self, message: Arrived) -> None:
        inbound = self._topics.parse(message.topic)
        requester = inbound.name if inbound is not None else ""
        if message.unreadable is None and self._facts().unavailable is not None:
            self._leave("it accepts no prompts")
            self._close()
        elif message.qos > 0 and (self._held or self._must_wait()):
            self._held.append((requester, message))
        else:
            self._accept(requester, message)

    def _accept_held(self) -> None:
        while self._held and not self._must_wait() and self._facts().unavailable is None:
            self._accept(*self._held.popleft())

    def _must_wait(self) -> bool:
        """A requester at its own limit is refused, as with direct prompts: holding it would hold those behind it."""
        return self._outbound.congested or self._admission.is_full()

    def _accept(self, requester: str, message: Arrived) -> None:
        """Hand a prompt to the admission; it is acknowledged when it is stored or refused."""
        if message.unreadable is not None:
            answer = self._admission.process_unreadable(requester, message, message.unreadable)
        else:
            try:
                (answer,) = self._admission.process_prompts([(requester, message)])
            except sqlite3.Error:
                self._leave("the journal cannot be read")
                self._close()
                return
        if self._connection is not None:
            self._connection.acknowledge(message)
        if answer is not None:
            self._outbound.send(answer)
