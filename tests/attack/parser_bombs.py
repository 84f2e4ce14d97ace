"""4 Parsers: bodies that are made to be slow to read, beside a requester who asks five times a second."""

from __future__ import annotations

import itertools
import random
import time

from tests.attack.context import Context
from tests.attack.requester import Requester, let_pass, ms, steady
from tests.support import Client

ANSWERED_WITHIN = 1.0  # seconds
TELEMETRY_GAP = 3.0  # seconds, at an interval of one
EACH = 0.003  # seconds of a backlog for each body in it; one took 0.049
QUADRATIC = b"{" + b'"\\' * 2040 + b"x"


def run(context: Context) -> None:
    """See the module."""
    count = 3000 if not context.short else 600
    large = 16_000_000 if not context.short else 4_000_000
    context.done = f"{count} bodies that cost quadratic time, deep, long and broken JSON, 3 of {large // 10**6} MB"
    with context.broker() as broker, context.device(broker) as device:
        requester = Requester(broker.port, device.root).listen("plain")
        watch = Client(broker.port).subscribe(f"{device.root}/#")
        attacker = Requester(broker.port, device.root)
        device.start()
        watch.status("online")
        begun = time.monotonic()
        with steady(requester, "plain", 0.2, lambda n: {"id": f"p{n}", "prompt": "say:fine"}):
            _attack(context, attacker, count, large)
            took = time.monotonic() - begun
        requester.settle(20)
        watch.document("/telemetry", 10)
        context.say(f"{took:.1f} s of attack, prompts: {requester.reasons()}")
        _judge(context, requester, watch, begun)
        _burst(context, requester, attacker, count)
        context.check_alive(device)
        for client in (requester, watch, attacker):
            client.close()


def _attack(context: Context, attacker: Requester, count: int, large: int) -> None:
    """Spread over the time there is, so that it is the cost of each that counts and not the length of a backlog."""
    nasty = _nasty(context.rng, large)
    for number in range(count):
        attacker.send("attacker", QUADRATIC, qos=0)
        if number % (count // len(nasty)) == 0 and nasty:
            attacker.send("attacker", nasty.pop(), qos=0)
        if number % 20 == 19:
            let_pass(20 * min(context.seconds, 12.0) / count)


def _nasty(rng: random.Random, large: int) -> list[bytes]:
    """Payloads that a parser may stumble over, in an order of their own."""
    payloads = [
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"seed":' + b"9" * 60_000 + b"}",
        b'{"temperature":1e' + b"9" * 60_000 + b"}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(7000)) + b"}",
        b"{" + b'"id":"' * 9000,
        b'{"id"' + b" " * 60_000,
        b'{"prompt":"' + b"\\ud800" * 10_000 + b'"}',
        b'{"prompt":"x","stop":[' + b'"y",' * 15_000 + b'"z"]}',
        b'{"messages":[' + b'{"role":"user","content":"x"},' * 2000 + b"{}]}",
        b"\xff" * 60_000,
        b"\x00" * 60_000,
        b'{"prompt":"x","expires_at":"2026-11-24T08:00:00.' + b"1" * 60_000 + b'Z"}',
        bytes(rng.choices(b'{}[]",:\\ 0e-x', k=60_000)),
        *(b'{"id":"' + b'\\"' * (large // 2) for _ in range(3)),
    ]
    rng.shuffle(payloads)
    return payloads


def _judge(context: Context, requester: Requester, watch: Client, begun: float) -> None:
    slowest = max(requester.latencies())
    context.check(
        f"another's prompts are answered within {ms(ANSWERED_WITHIN)}",
        f"{len(requester.sent)} prompts, {requester.reasons()}, slowest {ms(slowest)}",
        held=slowest <= ANSWERED_WITHIN and set(requester.reasons()) == {"stop"},
    )
    times = [begun, *(m.timestamp for m in watch.messages if m.topic.endswith("/telemetry") and m.timestamp > begun)]
    gap = max((after - before for before, after in itertools.pairwise(times)), default=float("inf"))
    context.check(
        f"telemetry goes on: no gap above {TELEMETRY_GAP:.0f} s at an interval of 1 s",
        f"longest gap {ms(gap)}",
        held=gap <= TELEMETRY_GAP,
    )


def _burst(context: Context, requester: Requester, attacker: Requester, count: int) -> None:
    """All at once, and a prompt behind them: it waits for the backlog, which must be short."""
    for _ in range(count):
        attacker.send("attacker", QUADRATIC, qos=0)
    requester.send("plain", {"id": "behind", "prompt": "say:fine"})
    limit = ANSWERED_WITHIN + EACH * count
    requester.settle(2 * limit)
    took = max(requester.latencies("behind"))
    context.check(
        f"a prompt behind {count} of them at once is answered within {ms(limit)}", ms(took), held=took <= limit
    )
