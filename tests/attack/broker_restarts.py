"""5 Broker restarts: five, 9 s apart, every second one without a goodbye. The device keeps its own back-off."""

from __future__ import annotations

import time

from tests.attack.context import Context
from tests.attack.requester import Requester, let_pass
from tests.support import Broker, Device

RESTARTS = 5
APART = 9.0  # seconds
AWAY = 30.0  # seconds at most from a broker that is there


def run(context: Context) -> None:
    """A short run restarts as soon as the device is back, so that it takes seconds."""
    apart = 0.0 if context.short else APART
    context.done = f"{RESTARTS} restarts, {f'{APART:.0f} s apart' if apart else 'each once the device is back'}"
    absences: list[float] = []
    with context.broker() as broker, context.device(broker) as device:
        watch = _watch(broker, device)
        device.start()
        watch.status("online")
        carried = 0.0  # seconds without the device before the broker went again
        for number in range(RESTARTS):
            watch.close()
            _restart(broker, hard=number % 2 == 1)
            watch = _watch(broker, device)
            last = number == RESTARTS - 1
            absent, there = _wait_for(watch, AWAY - carried if last or not apart else apart)
            absences.append(carried + absent)
            carried = 0.0 if there else carried + absent
            context.say(f"restart {number + 1}: {'back after' if there else 'away for'} {absences[-1]:.1f} s")
            if carried >= AWAY:
                break
            if not last and there:
                let_pass(apart - absent)
        seen = f"away for {', '.join(f'{seconds:.1f}' for seconds in absences)} s"
        context.check(f"never away for {AWAY:.0f} s from a broker that is there", seen, held=max(absences) < AWAY)
        _judge_name(context, watch, device)
        context.check_alive(device)
        watch.close()


def _watch(broker: Broker, device: Device) -> Requester:
    watch = Requester(broker.port, device.root).listen("me")
    watch.subscribe(f"{device.root}/#")
    return watch


def _restart(broker: Broker, *, hard: bool) -> None:
    """What it retained is lost, so whatever is on the status topic afterwards was published afterwards."""
    assert broker.process is not None
    if hard:
        broker.process.kill()
        broker.process.wait(10)
    broker.stop()
    broker.start()


def _wait_for(watch: Requester, seconds: float) -> tuple[float, bool]:
    """How long the device was away, at most so long, and whether it is back."""
    begun = time.monotonic()
    there = watch.seen_within(lambda m: m.topic.endswith("/status") and m.payload == b"online", seconds)
    return min(seconds, time.monotonic() - begun), there


def _judge_name(context: Context, watch: Requester, device: Device) -> None:
    """Once it is back a prompt is answered, and behind it everything that it had to say has come."""
    watch.send("me", {"id": "after", "prompt": "say:fine"})
    watch.settle(10)
    taken = [m.payload for m in watch.messages if m.topic.endswith("/event") and b"name_taken" in m.payload]
    logged = device.log.read_text(errors="replace").count("another board uses this name")
    seen = f"{len(taken)} events, {logged} lines of the log; a prompt afterwards: {watch.reasons() or 'not answered'}"
    held = not taken and not logged and watch.reasons() == {"stop": 1}
    context.check('no word of "another board uses this name"; prompts are answered', seen, held=held)
