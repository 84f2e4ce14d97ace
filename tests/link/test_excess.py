"""The connection to a broker that sends too much is closed; its messages take no more memory than the limit."""

from __future__ import annotations

import threading

import msgspec
import pytest

from edged.agent.findings import agent_findings
from edged.link import attempt
from edged.link.back_off import BackOff
from edged.link.events import Arrived, Down
from edged.link.inbound_budget import MAX_BYTES
from tests.link.conftest import Line, Wire
from tests.link.test_back_off import DROPPED


def publish(qos: int, mid: int, size: int) -> bytes:
    """A PUBLISH of v5 to `t` with a payload of `size` bytes."""
    body = b"\0\x01t" + mid.to_bytes(2, "big") + b"\0" + bytes(size)
    length = len(body)
    return bytes([0x30 | qos << 1, *(length >> 7 * at & 127 | (128 if at < 3 else 0) for at in range(4))]) + body


def flood(wire: Wire, qos: int, size: int) -> threading.Thread:
    """Sends until the other side closes, 400 MB at most."""

    def send() -> None:
        try:
            for mid in range(1, 400_000_000 // size):
                wire.send(publish(qos, mid, size))
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("qos", [1, 2])
def test_messages_that_nobody_acknowledges_are_bounded(
    wired: tuple[Line, Wire], qos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CATCH_UP_SECONDS", 0.1)
    made, wire = wired
    sender = flood(wire, qos, 5_000_000)
    down = made.next(Down)
    sender.join(20)
    assert down.excess
    assert "more unacknowledged data than this client allows" in down.reason
    assert not down.taken_over
    held = sum(len(event.payload) for event in made._kept if isinstance(event, Arrived))
    assert held <= MAX_BYTES + 5_000_000
    assert (made.bounds[-1][0]) == 0


def test_a_packet_above_the_maximum_is_not_read_to_its_end(wired: tuple[Line, Wire]) -> None:
    made, wire = wired
    sender = flood(wire, 1, 40_000_000)
    down = made.next(Down)
    assert down.excess
    assert not down.closed_by_broker
    sender.join(20)
    assert not [event for event in made._kept if isinstance(event, Arrived)]


def test_an_owner_that_acknowledges_gets_all(wired: tuple[Line, Wire]) -> None:
    """More than the bound in all, never at once."""
    made, wire = wired
    sender = threading.Thread(target=lambda: [wire.send(publish(1, mid, 5_000_000)) for mid in range(1, 31)])
    sender.start()
    for _ in range(30):
        made.connection.acknowledge(made.next(Arrived))
    sender.join(20)
    assert not any(isinstance(event, Down) for event in made._kept)


def test_the_wait_grows_with_each_time() -> None:
    back_off = BackOff("auto", lambda: 0.0, lambda _low, high: high)
    excess = msgspec.structs.replace(DROPPED, restarted=True, excess=True, closed_by_broker=False)
    assert [1, 2, 4, 8] == [back_off.after(excess).seconds for _ in range(4)]


def test_a_template_that_cannot_be_rendered_is_a_finding() -> None:
    (finding,) = agent_findings(None, (), None, None, 1.0, (), template_problem="It is broken.")
    assert ("template_unusable", "It is broken.", "degraded") == (finding.code, finding.advice, finding.severity)


def test_it_is_a_finding() -> None:
    (finding,) = agent_findings(None, (), None, None, 1.0, (), broker_excess=True)
    assert "broker_excess" == finding.code
