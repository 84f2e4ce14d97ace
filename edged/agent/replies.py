"""Where an answer goes out: notices and chunks at QoS 0 as they come, finals at QoS 1 until the broker has them."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.journal import ReplyTo
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import replies


class Replies:
    """Publishes replies. `token` of a final is the journal's sequence number, None where nothing is stored."""

    def __init__(self, outbound: Outbound, wall: Callable[[], float]) -> None:
        self._outbound = outbound
        self._wall = wall

    def fleeting(self, to: ReplyTo, payload: bytes) -> None:
        """A notice or a chunk: sent if the broker is there, lost otherwise; the final heals it."""
        self._outbound.send_now(to.topic, payload, replies.CONTENT_TYPE, to.correlation)

    def final(self, to: ReplyTo, prompt_id: str, payload: bytes, token: int | None) -> None:
        """A final. One that is too large for the broker is replaced by an error that says so."""
        correlation = to.correlation
        if not self._outbound.fits(to.topic, payload, correlation):
            message = f"the answer has {len(payload)} bytes, more than the broker seems to take; ask for fewer tokens"
            payload = replies.refusal(prompt_id, "failed", "too_large_for_broker", message, self._wall())
            if not self._outbound.fits(to.topic, payload, correlation):
                correlation = None  # the correlation data alone is more than the broker takes
        self._outbound.send(Publication(topic=to.topic, payload=payload, correlation=correlation, token=token))
