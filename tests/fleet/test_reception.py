"""The reception of a model as a machine: which messages count, what is asked for, what is reported. No I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.config.schema import Trust as OwnerTrust
from edged.core.chunk_set import Range
from edged.fleet import reception
from edged.fleet import reception_actions as r
from edged.fleet.trust import Trust, TrustRecord
from edged.wire import model_push
from edged.wire.model_push import CHUNK
from tests.fleet.signing import Key

DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
TOPIC = f"edged/v1/test/model/{DIGEST}/offer"
OFFER: dict[str, Any] = {"name": "m.gguf", "size": 4 * CHUNK, "root": "0" * 64}
PAYLOAD = bytes(CHUNK + 64)  # a chunk of four with its proof; whether it is right is the writer's to say


class Board:
    """A reception with a clock that tests set, and facts that they change."""

    def __init__(self, trust: OwnerTrust = OwnerTrust()) -> None:  # noqa: B008  - frozen
        self.now = 1000.0
        self.free = 10**9
        self.stored: set[str] = set()
        self.trust = Trust(trust, TrustRecord())
        self.machine = reception.Reception(
            "pi",
            ("g",),
            lambda: self.trust,
            lambda _digest: self.free,
            self.stored.__contains__,
            lambda: self.now,
            lambda: 500.0,
            lambda _low, high: high,
        )

    def offer(self, digest: str = DIGEST, **changed: Any) -> list[r.Action]:
        return self.machine.offered(digest, TOPIC, json.dumps({**OFFER, **changed}).encode())

    def receiving(self, have: list[Range] | None = None) -> Board:
        """The offer was accepted and the file is open."""
        assert [r.Open(DIGEST, model_push.parse_offer(json.dumps(OFFER).encode()))] == self.offer()
        self.machine.opened(have or [])
        return self

    def chunk(self, number: int | None, payload: bytes = PAYLOAD, digest: str = DIGEST) -> list[r.Action]:
        return self.machine.chunk(digest, number, payload)

    def write(self, *numbers: int) -> list[r.Action]:
        """Chunks come and are written; gives what followed from the last."""
        for number in numbers:
            assert [r.Write(number, PAYLOAD)] == self.chunk(number)
            actions = self.machine.written(number, whole=True)
        return actions


def states(actions: list[r.Action]) -> list[str]:
    return [action.state.state for action in actions if isinstance(action, r.Report)]


def reason(actions: list[r.Action]) -> str:
    (found,) = [action.state.reason for action in actions if isinstance(action, r.Report)]
    return found


def test_a_model_is_received_and_stored() -> None:
    board = Board()
    board.offer()
    actions = board.machine.opened([])
    assert ([r.Listen(DIGEST)], ["receiving"]) == (actions[:1], states(actions))
    assert [] == board.write(0, 2, 1)
    actions = board.write(3)
    assert ([r.Ignore(DIGEST)], ["storing"], [r.Store(DIGEST, "m.gguf")]) == (actions[:1], states(actions), actions[2:])
    actions = board.machine.stored(None)
    assert ([r.Close(remove=True)], ["stored"]) == (actions[:1], states(actions))
    assert (None, None) == (board.machine.receiving, board.machine.next_tick())


def test_what_is_missing_is_asked_for_when_nothing_new_comes() -> None:
    board = Board().receiving()
    board.now += reception.JOIN_WITHIN
    assert [r.Request(DIGEST, [(0, 4)])] == board.machine.tick()
    board.write(1)
    board.now += 2 * reception.QUIET - 0.5
    assert [] == board.machine.tick()
    board.now += 0.5
    assert board.now == board.machine.next_tick()
    assert [r.Request(DIGEST, [(0, 1), (2, 4)])] == board.machine.tick()
    assert [] == board.machine.tick()


def test_nothing_is_asked_for_that_the_sender_has_announced() -> None:
    board = Board().receiving([(0, 2)])
    assert [] == board.machine.sending(DIGEST, model_push.ranges([(2, 4)]))
    board.now += reception.JOIN_WITHIN
    assert [] == board.machine.tick()
    board.machine.sending(DIGEST, model_push.ranges([(0, 3)]))  # not chunk 3
    board.now += 2 * reception.QUIET
    assert [r.Request(DIGEST, [(2, 4)])] == board.machine.tick()
    board.machine.sending(DIGEST, model_push.ranges([]))  # it has sent everything
    board.now += reception.JOIN_WITHIN
    assert [r.Request(DIGEST, [(2, 4)])] == board.machine.tick()


def test_a_partial_file_is_continued_and_a_complete_one_stored_at_once() -> None:
    board = Board().receiving([(0, 3)])
    assert [r.Ignore(DIGEST)] == board.write(3)[:1]
    board = Board()
    board.offer()
    assert [r.Store(DIGEST, "m.gguf")] == board.machine.opened([(0, 4)])[-1:]


@pytest.mark.parametrize("to", [{"devices": ["pj"]}, {"group": "h"}])
def test_a_device_that_is_not_meant_ignores_the_offer(to: dict[str, Any]) -> None:
    assert [] == Board().offer(**to)


def test_copies_of_an_offer_get_one_answer_and_another_push_of_the_model_goes_on() -> None:
    board = Board().receiving()
    assert [] == board.offer()
    assert ["receiving"] == states(board.offer(expires_at="2030-01-01T00:00:00Z"))
    assert ["waiting"] == states(board.offer(root="1" * 64))
    assert ["waiting"] == states(board.offer(OTHER))
    board.write(0, 1, 2, 3)
    board.machine.stored(None)
    assert [] == board.offer()
    assert [r.Open] == [type(action) for action in board.offer(OTHER)]


def test_p06_chunks_that_are_not_of_the_offered_file_change_nothing() -> None:
    board = Board().receiving()
    for number, payload in (
        (None, PAYLOAD),
        (4, PAYLOAD),
        (10**6, PAYLOAD),
        (0, b""),
        (0, PAYLOAD[:-1]),
        (0, PAYLOAD + b"x"),
    ):
        assert [r.Bad] == [type(action) for action in board.chunk(number, payload)]
    assert [r.Write(0, PAYLOAD)] == board.chunk(0)
    assert [r.Bad] == [type(action) for action in board.machine.written(0, whole=False)]
    assert [r.Write(0, PAYLOAD)] == board.chunk(0)  # the right one is still taken
    assert 0.0 == board.machine._stream.done  # type: ignore[union-attr]


def test_a_chunk_is_written_once_and_few_wait_for_the_disk() -> None:
    board = Board()
    count = reception.IN_FLIGHT + 4
    board.offer(size=count * CHUNK)
    board.machine.opened([(0, 1)])
    offer = model_push.parse_offer(json.dumps({**OFFER, "size": count * CHUNK}).encode())
    payloads = [bytes(offer.payload_size(number)) for number in range(count)]
    assert [] == board.chunk(0, payloads[0])
    written = [number for number in range(1, count) if board.chunk(number, payloads[number])]
    assert list(range(1, reception.IN_FLIGHT + 1)) == written
    assert [] == board.chunk(1, payloads[1])


def test_chunks_of_another_model_end_their_subscription_once_a_connection() -> None:
    board = Board().receiving()
    assert [r.Ignore(OTHER)] == board.chunk(0, digest=OTHER)
    assert [] == board.chunk(1, digest=OTHER)
    assert [r.Listen(DIGEST)] == board.machine.connected()
    assert [r.Ignore(OTHER)] == board.chunk(2, digest=OTHER)


def test_a_disk_without_room_for_a_tenth_more_refuses() -> None:
    board = Board()
    board.free = 4 * CHUNK * 11 // 10 - 1
    assert "the model needs 0 MB of disk but 0 MB are free; free some space" == reason(board.offer())
    board.free += 1
    assert [r.Open] == [type(action) for action in board.offer(expires_at="2030-01-01T00:00:00Z")]


def test_a_model_in_the_store_is_not_received_again() -> None:
    board = Board()
    board.stored.add(DIGEST)
    assert ["stored"] == states(board.offer())


def test_a_silent_sender_makes_room_for_another_model_and_the_same_offer_is_taken_up_again() -> None:
    board = Board().receiving()
    board.write(0)
    while "failed" not in states(actions := board.machine.tick()):
        assert board.now < 1000.0 + 2 * reception.SILENT_AFTER
        board.now += 1.0
    assert [r.Close(remove=False)] == [action for action in actions if isinstance(action, r.Close)]
    assert [r.Open] == [type(action) for action in board.offer()]


def test_p06_bytes_that_are_not_the_models_are_removed_and_not_fetched_again() -> None:
    board = Board().receiving()
    board.write(0, 1, 2, 3)
    actions = board.machine.stored("has the digest …", damaged=True)
    assert ([r.Close(remove=True)], ["failed"]) == (actions[:1], states(actions))
    assert [] == board.offer()


def test_a_disk_that_fails_ends_the_reception_and_keeps_the_file() -> None:
    board = Board().receiving()
    actions = board.machine.failed("the disk is full")
    assert [r.Ignore(DIGEST), r.Close(remove=False)] == actions[:2]
    assert ("the disk is full", []) == (reason(actions), board.offer())


# ---- trust -----------------------------------------------------------------------------------------------------------


KEY, STRANGER = Key("ops", 1), Key("ops", 2)
STRICT = OwnerTrust({"ops": KEY.public}, require_signature=True)


@pytest.mark.parametrize(
    ("trust", "payload", "said"),
    [
        (STRICT, KEY.sign(TOPIC, OFFER), None),
        (OwnerTrust({"ops": KEY.public}), KEY.sign(TOPIC, OFFER), None),
        (OwnerTrust(), json.dumps(OFFER).encode(), None),
        (STRICT, json.dumps(OFFER).encode(), "signature: is required on this device"),
        (STRICT, STRANGER.sign(TOPIC, OFFER), "signature.value: does not match"),
        (STRICT, KEY.sign(TOPIC.replace("a" * 64, "b" * 64), OFFER), "signature.value: does not match"),
        (STRICT, KEY.sign(TOPIC, {**OFFER, "size": 9}).replace(b'"size": 9', b'"size": 8'), "signature.value"),
        (OwnerTrust(), KEY.sign(TOPIC, OFFER), "signature.key: "),
        (STRICT, KEY.sign(TOPIC, {**OFFER, "expires_at": "1970-01-01T00:08:19Z"}), "expires_at: is over"),
    ],
)
def test_p05_an_offer_needs_the_signature_that_the_trust_asks_for(
    trust: OwnerTrust, payload: bytes, said: str | None
) -> None:
    actions = Board(trust).machine.offered(DIGEST, TOPIC, payload)
    if said is None:
        assert [r.Open] == [type(action) for action in actions]
    else:
        assert (["refused"], True) == (states(actions), reason(actions).startswith(said))


def test_p09_a_flood_of_offers_gets_few_answers_and_does_not_disturb_the_reception() -> None:
    board = Board(STRICT)
    board.machine.offered(DIGEST, TOPIC, KEY.sign(TOPIC, OFFER))
    board.machine.opened([])
    answers = [board.offer(f"sha256:{number:064x}") for number in range(2000)]
    assert 20 > len([actions for actions in answers if actions])
    assert [r.Ignore(DIGEST)] == board.write(0, 1, 2, 3)[:1]
