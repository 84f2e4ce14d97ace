"""A prompt sent to a device, and its answer as it grows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from edged.core.errors import BrokerError, EdgedError
from edged.serve.broker import Broker, Reply
from edged.serve.fleet_state import Device, FleetState

RESEND_EVERY: Final = 5.0  # seconds without any reply
PATIENCE: Final = 600.0  # seconds for a whole answer
FLEET: Final = "fleet"  # the name that stands for any device


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
    """As `choose_device`, once the fleet is known."""
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
    replies = broker.subscribe(prompt_id)
    growth = _Growth()
    ended = sent = False
    try:
        prompt = {"id": prompt_id, **body}
        await broker.publish(topic, prompt)
        sent = True
        async for reply in _replies(broker, replies, topic, prompt):
            if reply.get("id") != prompt_id:
                continue
            if reply.get("final"):
                ended = True
                yield Ended(reply, growth.end(reply))
                return
            if (part := growth.add(reply)) is not None:
                yield part
    finally:
        broker.unsubscribe(prompt_id)
        if sent and not ended:
            with suppress(BrokerError):
                await asyncio.shield(broker.publish(f"{root}/cancel/{broker.requester}", {"id": prompt_id}))


async def _replies(
    broker: Broker, replies: asyncio.Queue[Reply], topic: str, prompt: dict[str, Any]
) -> AsyncIterator[Reply]:
    """Replies as they come; until the first, the prompt is sent again (a device answers one id once)."""
    until = asyncio.get_running_loop().time() + PATIENCE
    answered = False
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            reply = await asyncio.wait_for(replies.get(), left if answered else min(left, RESEND_EVERY))
        except asyncio.TimeoutError:
            if not answered:
                with suppress(BrokerError):
                    await broker.publish(topic, prompt)
            continue
        answered = True
        yield reply
    raise BrokerError(f"no answer came within {PATIENCE:.0f} s")


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
            if isinstance(piece, str) and isinstance(at, int) and 0 <= at <= len(self._whole[key]):
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
