"""2 Formats: schemas whose check takes about a second each, beside another requester's plain and formatted prompts."""

from __future__ import annotations

import math
from typing import Any

from tests.attack.context import Context
from tests.attack.requester import Requester, let_pass, ms, steady
from tests.support import Client

SETTLE = 20.0  # seconds for what was sent last
NOISE = 0.15  # seconds that a busy machine adds by itself


def bomb(number: int, parts: int = 59) -> dict[str, Any]:
    """A format that is refused after about a second, and another with each number. Equal patterns would be cheap."""
    conditions = [{"pattern": f"(a|b)*a(a|b){{10}}(c{part})?"} for part in range(parts)]
    schema = {"type": "string", "title": f"t{number}", "allOf": conditions}
    return {"type": "json_schema", "schema": schema}


def plain(number: int) -> dict[str, Any]:
    """Priority 0; every second one has a format of its own."""
    body = {"prompt": "Which city?", "priority": 0, "max_tokens": 8, "stream": False}
    if number % 2:
        return {"id": f"formatted-{number}", **body, "format": {"type": "choice", "choices": [f"a{number}", "b"]}}
    return {"id": f"plain-{number}", **body}


def run(context: Context) -> None:
    """See the module."""
    bombs = 62 if not context.short else 3
    context.done = f"{bombs} bombs at priority 9 of one requester"
    with context.broker() as broker, context.device(broker, fake=False) as device:
        watch = Client(broker.port).subscribe(f"{device.root}/#")
        before, during = (Requester(broker.port, device.root).listen(name) for name in ("before", "during"))
        attacker = Requester(broker.port, device.root).listen("attacker")
        device.start()
        watch.status("online", 60)
        attacker.send("attacker", {"id": "first", "prompt": "x", "format": bomb(-1)})
        attacker.settle(60)
        one = attacker.answers()["first"][0]
        context.say(f"the check of one bomb takes {ms(one)}")
        _wait(before, "before", context.seconds / 5)
        for number in range(bombs):
            attacker.send("attacker", {"id": f"b{number}", "prompt": "x", "priority": 9, "format": bomb(number)})
        _wait(during, "during", min(context.seconds / 2, max(2.0, bombs * one * 0.8)))
        _judge(context, before, during, one)
        attacker.settle(3 * bombs * one + SETTLE)
        reasons = attacker.reasons("b")
        context.check(
            "each bomb gets a final",
            f"{reasons} of {bombs}",
            held=sum(reasons.values()) == bombs and set(reasons) <= {"invalid", "busy"},
        )
        context.check_alive(device)
        events = [m.payload for m in watch.messages if m.topic.endswith("/event") and b"worker" in m.payload]
        context.check("the worker is not lost", f"{events[:2] or 'no event of it'}", held=not events)
        for client in (watch, before, during, attacker):
            client.close()


def _wait(requester: Requester, name: str, seconds: float) -> None:
    """Send for so long, then wait for what is still open."""
    with steady(requester, name, 0.2, plain):
        let_pass(seconds)
    requester.settle(SETTLE)


def _judge(context: Context, before: Requester, during: Requester, one: float) -> None:
    """A loop that waits for checks adds a check to a prompt. A check that has begun may end before the next one."""
    for kind, must, allowed in (
        ("plain", "no prompt without a format waits for a check", one / 2),
        ("formatted", "another's format waits for one check at most", one * 1.5),
    ):
        base, worst = max(before.latencies(kind), default=math.inf), max(during.latencies(kind), default=math.inf)
        limit = base + allowed + NOISE
        reasons = during.reasons(kind)
        seen = f"{len(during.latencies(kind))} prompts, {reasons}, slowest {ms(worst)} (before {ms(base)})"
        context.check(f"{must}: below {ms(limit)}", seen, held=worst <= limit and set(reasons) <= {"stop", "length"})
