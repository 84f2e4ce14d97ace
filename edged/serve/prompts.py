"""A prompt sent to a device, and its answer as it grows."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from edged.core.errors import BrokerError, EdgedError
from edged.serve.broker import MAX_REPLY, Broker, Reply
from edged.serve.fleet_state import Device, FleetState

RESEND_EVERY: Final = 5.0  # seconds without any reply
PATIENCE: Final = 600.0  # seconds for a whole answer
BROKER_AWAY: Final = 10.0  # seconds without a connection after which a prompt fails
DEVICE_AWAY: Final = 60.0  # seconds that a device is offline: its service restarts and loads the model in less
TICK: Final = 1.0  # seconds between two looks at both
FLEET: Final = "fleet"  # the name for any device


class NoDeviceError(EdgedError):
    """No device can take this prompt. `known` False: there is none of this name."""

    def __init__(self, message: str, *, known: bool) -> None:
        super().__init__(message)
        self.known = known


class Grown(msgspec.Struct, frozen=True):
    """More of an answer: what follows the text and the reasoning that were given before."""

    text: str
    reasoning: str = ""


class Ended(msgspec.Struct, frozen=True):
    """The answer is whole. `final`: the device's final; `rest`: what of it was not given yet."""

    final: Reply
    rest: Grown


Part = Grown | Ended


class ChangedAnswerError(EdgedError):
    """The device began the answer again and it became another: what was passed on already is no part of it."""


async def find_device(broker: Broker, name: str) -> Device:
    """As `choose_device`, once the fleet is known. Raises BrokerError too."""
    if broker.problem:
        raise BrokerError(f"the broker cannot be reached: {broker.problem}")
    try:
        return choose_device(broker.state, name)
    except NoDeviceError:
        await broker.settle()
        return choose_device(broker.state, name)


def choose_device(state: FleetState, name: str) -> Device:
    """The device of this name, or for `fleet` the one that is online with the fewest prompts. Raises NoDeviceError."""
    if name == FLEET:
        online = [device for device in state.devices.values() if device.status == "online"]
        if not online:
            raise NoDeviceError(f"no device of the fleet {state.fleet} is online", known=True)
        return min(online, key=lambda device: (device.open_prompts, device.name))
    device = state.devices.get(name)
    if device is None:
        names = ", ".join(sorted(one.name for one in state.devices.values())[:8]) or "none"
        raise NoDeviceError(f"no device {name} is known in the fleet {state.fleet}; known: {names}", known=False)
    if device.status in {"offline", "unknown"}:
        raise NoDeviceError(f"the device {name} is {device.status}", known=True)
    return device


def models_of(state: FleetState) -> list[str]:
    """What a client may choose: the devices that take prompts, and `fleet` for any of them."""
    names = sorted(device.name for device in state.devices.values() if device.connected)
    return [*names, FLEET] if names else []


async def ask(broker: Broker, device: str, body: dict[str, Any]) -> AsyncGenerator[Part]:
    """Send a prompt and give its answer part by part, `Ended` last. Closed before that it cancels the prompt.

    Raises BrokerError, ChangedAnswerError.
    """
    prompt_id = f"serve-{secrets.token_hex(12)}"
    root = f"edged/v1/{broker.state.fleet}/device/{device}"
    topic = f"{root}/prompt/{broker.requester}"
    replies = broker.subscribe(device, prompt_id)
    growth = _Growth()
    ended = sent = False
    try:
        prompt = {**body, "id": prompt_id}
        await broker.publish(topic, prompt)
        sent = True
        async for reply in _replies(broker, device, replies, topic, prompt):
            if reply.get("final") is True:
                ended = True
                final = _well_formed(reply)
                yield Ended(final, growth.end(final))
                return
            if (part := growth.add(reply)) is not None:
                yield part
    finally:
        broker.unsubscribe(device, prompt_id)
        if sent and not ended:
            with suppress(BrokerError):
                await asyncio.shield(broker.publish(f"{root}/cancel/{broker.requester}", {"id": prompt_id}))


async def _replies(
    broker: Broker, device: str, replies: asyncio.Queue[Reply], topic: str, prompt: dict[str, Any]
) -> AsyncIterator[Reply]:
    """Replies as they come.

    The same bytes are sent again until the first reply, and after each reconnection, which lost what was published
    meanwhile, until the next: a device answers one id once, and sends the text so far.
    """
    clock = asyncio.get_running_loop().time
    until, sent_at, session = clock() + PATIENCE, clock(), broker.session
    answered = False
    away = _Away(broker, device)
    while clock() < until:
        try:
            reply = await asyncio.wait_for(replies.get(), TICK)
        except asyncio.TimeoutError:
            away.check(clock())
            if session != broker.session and not broker.problem:
                session, answered, sent_at = broker.session, False, -math.inf
            if not answered and not broker.problem and clock() >= sent_at + RESEND_EVERY:
                sent_at = clock()
                with suppress(BrokerError):
                    await broker.publish(topic, prompt)
            continue
        answered = True
        yield reply
    raise BrokerError(f"no answer came within {PATIENCE:.0f} s")


def _well_formed(final: Reply) -> Reply:
    """With texts as `text`, `reason` and `reasoning`, whatever was published."""
    known = {key: final.get(key) if isinstance(final.get(key), str) else "" for key in ("text", "reason", "reasoning")}
    if not known["reasoning"]:
        del known["reasoning"]
    return {key: value for key, value in final.items() if key != "reasoning"} | known


class _Away:
    """Since when the broker, or the device, is away. `check` raises BrokerError when it is so for too long."""

    def __init__(self, broker: Broker, device: str) -> None:
        self._broker = broker
        self._device = device
        self._broker_since: float | None = None
        self._device_since: float | None = None

    def check(self, now: float) -> None:
        device = self._broker.state.devices.get(self._device)
        offline = device is None or device.status == "offline"
        self._broker_since = self._since(self._broker_since, now, is_away=bool(self._broker.problem))
        self._device_since = self._since(self._device_since, now, is_away=offline and not self._broker.problem)
        if self._broker_since is not None and now - self._broker_since >= BROKER_AWAY:
            raise BrokerError(f"the connection to the broker was lost: {self._broker.problem}")
        if self._device_since is not None and now - self._device_since >= DEVICE_AWAY:
            raise BrokerError(f"the device {self._device} went offline")

    @staticmethod
    def _since(before: float | None, now: float, *, is_away: bool) -> float | None:
        if not is_away:
            return None
        return now if before is None else before


class _Growth:
    """The text so far, by the chunks' `at`, and how much of it was given on."""

    def __init__(self) -> None:
        self._whole = {"text": "", "reasoning": ""}
        self._given = {"text": "", "reasoning": ""}

    def add(self, chunk: Reply) -> Grown | None:
        """What a chunk adds; None for a notice, a gap, or a text that was given already."""
        found = False
        for key in self._whole:
            piece, at = chunk.get(key), chunk.get("at" if key == "text" else "reasoning_at", 0)
            if not isinstance(piece, str) or not isinstance(at, int) or at + len(piece) > MAX_REPLY:
                continue
            if 0 <= at <= len(self._whole[key]):
                self._whole[key] = self._whole[key][:at] + piece
                found = True
        if not found:
            return None
        part = Grown(self._new("text"), self._new("reasoning"))
        return part if part.text or part.reasoning else None

    def end(self, final: Reply) -> Grown:
        """What the final adds. Raises ChangedAnswerError."""
        for key in self._whole:
            value = final.get(key)
            self._whole[key] = value if isinstance(value, str) else ""
            if "error" not in final and not self._whole[key].startswith(self._given[key]):
                raise ChangedAnswerError("the device began the answer again and it became another; send it again")
        return Grown(self._new("text"), self._new("reasoning"))

    def _new(self, key: str) -> str:
        whole, given = self._whole[key], self._given[key]
        if not whole.startswith(given):
            return ""  # begun again: wait until it has passed what was given
        self._given[key] = whole
        return whole[len(given) :]
