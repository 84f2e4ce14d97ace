"""3 Fairness: twenty abusers beside one victim who sends a prompt a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.attack.context import Context
from tests.attack.format_bombs import bomb
from tests.attack.requester import Requester, let_pass, ms, quantile, steady
from tests.support import Client

LAYERS = 64  # of the tiny model: an answer of the victim takes about a quarter of a second
FACTOR = 2.0  # times its own p99 without abusers
NOISE = 0.2  # seconds; below that the machine's own noise decides
ANSWER = 96  # tokens of the victim's answers
SETTLE = 45.0  # seconds for the victim's last answers


def victim(number: int) -> dict[str, Any]:
    """Short, with the default priority."""
    return {"id": f"v{number}", "prompt": "What is the capital of Japan?", "max_tokens": ANSWER, "stream": False}


def _flood(number: int) -> dict[str, Any]:
    return {"id": f"flood{number}", "prompt": "x " * 50, "max_tokens": 200}


def _first(number: int) -> dict[str, Any]:
    return {"id": f"first{number}", "prompt": "x", "max_tokens": 400, "priority": 0}


def _bomb(number: int) -> dict[str, Any]:
    return {"id": f"bomb{number}", "prompt": "x", "priority": number % 10, "format": bomb(number)}


# What each abuser does: its name, seconds between bursts, prompts in each.
KINDS: tuple[tuple[str, Callable[[int], dict[str, Any]], float, int], ...] = (
    ("flood", _flood, 2.0, 100),
    ("first", _first, 1.0, 10),
    ("bomb", _bomb, 2.0, 3),
)


def run(context: Context) -> None:
    """See the module."""
    abusers = 20 if not context.short else 6
    context.done = f"{abusers} abusers: floods of 100 prompts, long ones at priority 0, bombs; each with its own name"
    part = max(4.0, context.seconds * 0.4)
    with context.broker() as broker, context.device(broker, fake=False, layers=LAYERS) as device:
        watch = Client(broker.port).subscribe(f"{device.root}/#")
        before, during = (Requester(broker.port, device.root).listen("victim") for _ in range(2))
        device.start()
        watch.status("online", 60)
        with steady(before, "victim", 1.0, victim):
            let_pass(part)
        before.settle(SETTLE)
        context.say(f"without abusers: {_figures(before)}")
        with ExitStack() as stack:
            for number in range(abusers):
                stack.enter_context(_abuse(broker.port, device.root, number))
            let_pass(1.0)
            with steady(during, "victim", 1.0, lambda number: victim(1000 + number)):
                let_pass(part)
            context.say(f"with abusers: {_figures(during)}")
            during.settle(SETTLE)
        _judge(context, before, during)
        context.check_alive(device)
        for client in (watch, before, during):
            client.close()


@contextmanager
def _abuse(port: int, root: str, number: int) -> Iterator[None]:
    """One abuser: bursts from a thread of its own while the block runs."""
    name, body, every, count = KINDS[number % len(KINDS)]
    client = Requester(port, root)
    ended = threading.Event()

    def send() -> None:
        sent = 0
        while not ended.is_set():
            for _ in range(count):
                client.send(f"{name}-{number}", body(number * 100_000 + sent))
                sent += 1
            ended.wait(every)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        client.close()


def _figures(requester: Requester) -> str:
    times = requester.latencies()
    return f"{requester.reasons()} of {len(times)}, median {ms(quantile(times, 0.5))}, p99 {ms(quantile(times, 0.99))}"


def _judge(context: Context, before: Requester, during: Requester) -> None:
    refused = {reason: count for reason, count in during.reasons().items() if reason not in ("stop", "length")}
    context.check("none of the victim's prompts is refused", f"{refused or 0} of {len(during.sent)}", held=not refused)
    own, worst = quantile(before.latencies(), 0.99), quantile(during.latencies(), 0.99)
    limit = max(FACTOR * own, own + NOISE)
    if context.short:  # a few prompts, on a machine that may have other work: that none is starved
        context.check(f"each is answered within {SETTLE:.0f} s", _figures(during), held=worst < SETTLE)
        return
    context.check(
        f"its p99 is at most {FACTOR:.0f} times what it is without abusers: {ms(limit)}",
        f"without: {_figures(before)}; with: {_figures(during)}",
        held=worst <= limit,
    )
