"""The topics of one fleet, built and parsed."""

from __future__ import annotations

import re
from typing import NamedTuple

REQUESTER = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
PROMPT_ID = re.compile(r"(?![^/]*[/+#])[\x21-\x7e]{1,128}\Z")
ROOT = "edged/v1"
_POOL = re.compile(r"/pool/[^/]+/prompt/([^/]*)\Z")
MAX_LEVELS = 32  # of a Response Topic: some brokers close the connection at a publish to a deeper one


class Inbound(NamedTuple):
    """A parsed incoming topic: `kind` is `prompt`, `cancel`, `command`, `config`, `status`, `birth` or `model`.

    `name` is the requester (unchecked), the layer (`fleet`, `group:NAME`, `device`), or of `model` the topic's rest.
    """

    kind: str
    name: str


class Topics:
    """The names below `edged/v1/{fleet}/` as one device uses them. Immutable.

    `birth`: where another program that shows the device reports its start; None: there is none. `pools` has the filters
    of the shared subscriptions to the pools of that name.
    """

    def __init__(
        self,
        fleet: str,
        device: str,
        groups: tuple[str, ...] = (),
        birth: str | None = None,
        pools: tuple[str, ...] = (),
    ) -> None:
        self.birth = birth
        self.fleet = fleet
        self.device = device
        self.groups = groups
        self.root = f"{ROOT}/{fleet}"
        self.own = f"{self.root}/device/{device}"
        self.status = f"{self.own}/status"
        self.health = f"{self.own}/health"
        self.telemetry = f"{self.own}/telemetry"
        self.event = f"{self.own}/event"
        self.reported = f"{self.own}/config/reported"
        self.history = f"{self.own}/config/history"
        self.prompts = f"{self.own}/prompt/+"
        self.cancels = f"{self.own}/cancel/+"
        self.commands = f"{self.own}/command/+"
        self.pools = tuple(f"$share/edged/{self.pool_prompts(pool)}+" for pool in pools)
        self.offers = f"{self.root}/model/+/offer"
        self.layers = {
            f"{self.root}/config": "fleet",
            **{f"{self.root}/group/{group}/config": f"group:{group}" for group in groups},
            f"{self.own}/config": "device",
        }

    def parse(self, topic: str) -> Inbound | None:
        """A received topic parsed, or None where it is none of ours."""
        if topic in self.layers:
            return Inbound("config", self.layers[topic])
        if topic == self.birth:
            return Inbound("birth", "")
        if topic == self.status:
            return Inbound("status", "")
        for kind in ("prompt", "cancel", "command"):
            prefix = f"{self.own}/{kind}/"
            if topic.startswith(prefix) and "/" not in topic[len(prefix) :]:
                return Inbound(kind, topic[len(prefix) :])
        if (pooled := _POOL.match(topic[len(self.root) :] if topic.startswith(self.root) else "")) is not None:
            return Inbound("prompt", pooled[1])
        models = f"{self.root}/model/"
        return Inbound("model", topic[len(models) :]) if topic.startswith(models) else None

    def pool_prompts(self, pool: str) -> str:
        """The prefix of the prompts to a pool; the requester follows."""
        return f"{self.root}/pool/{pool}/prompt/"

    def model(self, digest: str, what: str) -> str:
        """A topic about a model that is sent over the broker: `offer`, `sending`, `chunk/{number}`, `missing/…`, …"""
        return f"{self.root}/model/{digest}/{what}"

    def replies(self, requester: str) -> str:
        """The prefix of a requester's replies from any device; ends in `/`."""
        return f"{self.root}/reply/{requester}/"

    def reply(self, requester: str, prompt_id: str) -> str:
        """The default topic of the replies to one prompt."""
        return f"{self.replies(requester)}{self.device}/{prompt_id}"

    def allows_reply_to(self, topic: str, requester: str, owner_prefixes: tuple[str, ...]) -> bool:
        """Whether a v5 Response Topic may be used: below the requester's own replies or an owner's prefix."""
        if len(topic.encode()) > 1024 or topic.count("/") >= MAX_LEVELS:
            return False
        if not topic.isprintable() or any(character in topic for character in "+#"):
            return False
        return any(
            topic.startswith(prefix) and len(topic) > len(prefix)
            for prefix in (self.replies(requester), *owner_prefixes)
        )
