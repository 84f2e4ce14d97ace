"""Publishes replies: notices and chunks at QoS 0, finals at QoS 1 until the broker has acknowledged them."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.journal import ReplyTo
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import replies


class Replies:
    """Publishes replies. `token` of a final is the journal's sequence number, or what names a refusal."""

    def __init__(self, outbound: Outbound, wall: Callable[[], float]) -> None:
        self._outbound = outbound
        self._wall = wall

    def send_now(self, to: ReplyTo, payload: bytes) -> None:
        """Publish a notice or a chunk; without a connection it is lost, and the final carries everything."""
        self._outbound.send_now(to.topic, payload, replies.CONTENT_TYPE, to.correlation)

    def send_final(self, to: ReplyTo, prompt_id: str, payload: bytes, token: object) -> None:
        """Publish a final."""
        self._outbound.send(self.final(to, prompt_id, payload, token))

    def final(self, to: ReplyTo, prompt_id: str, payload: bytes, token: object) -> Publication:
        """A final to publish. One that is too large for the broker is replaced by an error with that reason."""
        correlation = to.correlation
        if not self._outbound.fits(to.topic, payload, correlation):
            message = f"the answer has {len(payload)} bytes, more than the broker accepts; ask for fewer tokens"
            payload = replies.refusal(prompt_id, "failed", "too_large_for_broker", message, self._wall())
            if not self._outbound.fits(to.topic, payload, correlation):
                correlation = None  # the correlation data alone is too large for the broker
        return Publication(topic=to.topic, payload=payload, correlation=correlation, token=token)

    def is_on_its_way(self, token: object) -> bool:
        """Whether a final with this token waits for the broker's acknowledgement."""
        return self._outbound.holds(token)
