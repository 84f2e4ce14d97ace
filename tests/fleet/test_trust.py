"""Promise 5: nothing unsigned, forged, replayed, expired or below the floor is applied; the floor never goes back."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from edged.fleet.desired import DesiredConfig
from edged.wire.layers import Reported
from edged.wire.topics import Topics
from tests.fleet.signing import Key

OPS, NEXT, THIEF = Key("ops", 1), Key("next", 2), Key("thief", 3)
TOPICS = Topics("home", "pi", ("kitchen",))
TOPIC = {name: topic for topic, name in TOPICS.layers.items()}
NOW = 1_800_000_000.0
AN_HOUR_AGO, IN_AN_HOUR = "2027-01-15T07:00:00Z", "2027-01-15T09:00:00Z"


class Board:
    """A device's desired config, with a folder that outlasts its restarts."""

    def __init__(self, folder: Path, *, required: bool = True, keys: tuple[Key, ...] = (OPS,)) -> None:
        self.folder = folder
        self.owner = {"trust": {"keys": {key.name: key.public for key in keys}, "require_signature": required}}
        self.restart()

    def restart(self) -> None:
        self.config = DesiredConfig(self.owner, TOPICS, self.folder / "layers.json")
        self.config.load()

    def push(self, payload: bytes, name: str = "device", now: float = NOW) -> Reported:
        self.config.apply(name, payload, now)
        return self.config.report

    def signed(self, revision: int, *, key: Key = OPS, name: str = "device", **layer: Any) -> Reported:
        """Push a signed layer whose `max_tokens` is its revision."""
        return self.push(signed(revision, key=key, name=name, **layer), name)

    @property
    def runs(self) -> int:
        """The revision that is in force, as far as the settings show it."""
        return self.config.in_force.settings.generation.max_tokens


def content(revision: int, **more: Any) -> dict[str, Any]:
    return {"revision": revision, "settings": {"generation": {"max_tokens": revision}}, **more}


def signed(revision: int, *, key: Key = OPS, name: str = "device", **more: Any) -> bytes:
    return key.sign(TOPIC[name], content(revision, **more))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def says(report: Reported, *parts: str) -> None:
    """The push was rejected with a sentence that has these parts."""
    assert "rejected" == report.phase, report
    for part in parts:
        assert part in report.reason


def test_p05_a_layer_signed_with_a_known_key_for_this_topic_is_applied(board: Board) -> None:
    report = board.signed(12)
    assert ("applied", "device", 12, {"device": 12}) == (report.phase, report.layer, report.revision, report.in_force)
    assert 12 == board.runs
    board.restart()
    assert 12 == board.runs


def test_p05_an_unsigned_layer_is_refused_where_signatures_are_required(board: Board) -> None:
    board.signed(12)
    says(board.push(json.dumps(content(13)).encode()), "signature: is required on this device", "--key FILE")
    assert 12 == board.runs


@pytest.mark.parametrize(
    ("forged", "part"),
    [
        (signed(13, key=THIEF), "signature.key: 'thief' is no key that this device knows"),
        (Key("ops", 3).sign(TOPIC["device"], content(13)), "signature.value: does not match"),
        (signed(13).replace(b'"max_tokens": 13', b'"max_tokens": 14'), "signature.value: does not match"),
        (signed(13).replace(b'"revision": 13', b'"revision": 14'), "signature.value: does not match"),
        (OPS.sign(TOPIC["fleet"], content(13)), "signed for another topic"),
        (OPS.sign("edged/v1/home/device/other/config", content(13)), "signed for another topic"),
        (OPS.sign(TOPIC["device"], content(13), value="A" * 86 + "=="), "signature.value: does not match"),
        (OPS.sign(TOPIC["device"], content(13), value="A" * 87 + "="), "signature.value: must be an Ed25519 signature"),
        (OPS.sign(TOPIC["device"], content(13), alg="none"), "signature.alg: must be one of ed25519"),
        (OPS.sign(TOPIC["device"], content(13, expires_at=IN_AN_HOUR)).replace(b"T09", b"T10"), "does not match"),
    ],
)
def test_p05_a_forged_or_moved_layer_is_refused(board: Board, forged: bytes, part: str) -> None:
    board.signed(12)
    says(board.push(forged), part)
    assert 12 == board.runs


def test_p05_a_signature_is_verified_also_where_none_is_required(tmp_path: Path) -> None:
    board = Board(tmp_path, required=False)
    assert "applied" == board.push(json.dumps(content(1)).encode()).phase
    says(board.signed(2, key=THIEF), "'thief' is no key")
    assert "applied" == board.signed(3).phase
    assert "applied" == board.push(json.dumps(content(2)).encode()).phase
    says(Board(tmp_path / "new", required=False, keys=()).signed(2), "'ops' is no key")


def test_p05_a_lower_revision_is_refused_and_so_is_the_same_with_other_content(board: Board) -> None:
    board.signed(12)
    says(board.signed(11), "revision: 11 is below 12", "push a revision above 12")
    says(board.signed(12, expires_at=IN_AN_HOUR), "revision: 12 was applied with other content")
    assert 12 == board.runs
    assert "applied" == board.signed(12).phase
    assert "applied" == board.signed(1, name="fleet").phase  # each topic has its own floor


def test_p05_the_floor_survives_the_loss_of_the_layers_file(board: Board) -> None:
    board.signed(12)
    (board.folder / "layers.json").unlink()
    board.restart()
    assert 256 == board.runs
    says(board.signed(11), "below 12")
    assert "applied" == board.signed(12).phase
    assert 12 == board.runs


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 100])
def test_p05_the_floor_survives_damage_to_either_of_its_files(board: Board, damage: bytes) -> None:
    board.signed(12)
    (board.folder / "layers.json").unlink()
    for name in ("trust.json", "trust-copy.json"):
        kept = (board.folder / name).read_bytes()
        (board.folder / name).write_bytes(damage)
        board.restart()
        says(board.signed(11), "below 12")
        (board.folder / name).write_bytes(kept)


def test_p05_with_both_files_of_the_floors_damaged_nothing_new_is_applied_until_the_owner_resets_them(
    board: Board,
) -> None:
    board.signed(12)
    for name in ("trust.json", "trust-copy.json"):
        (board.folder / name).write_bytes(b"garbage")
    for _ in range(2):
        board.restart()
        says(board.signed(13), "trust.json are damaged", "edged trust reset")
        assert 12 == board.runs


def test_p05_without_its_files_the_floor_is_that_of_the_layers_in_force(board: Board) -> None:
    board.signed(12)
    for name in ("trust.json", "trust-copy.json"):
        (board.folder / name).unlink()
    board.restart()
    says(board.signed(11), "below 12")
    (board.folder / "layers.json").unlink()
    board.restart()
    says(board.signed(11), "below 12")


def test_p05_a_floor_that_cannot_be_stored_refuses_the_layer(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    board.signed(12)
    with monkeypatch.context() as patch:
        patch.setattr("edged.fleet.trust_store.save", full)
        says(board.signed(13), "the revision floor cannot be stored (No space left on device)")
        assert 12 == board.runs
    assert "applied" == board.signed(13).phase


def test_p05_a_layer_that_cannot_be_stored_is_refused_and_applies_later(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    board.signed(12)
    with monkeypatch.context() as patch:
        patch.setattr("edged.fleet.layer_store.save", full)
        says(board.signed(13, trust={"keys": {"next": NEXT.public}}), "cannot be stored")
        assert 12 == board.runs
    assert "applied" == board.signed(13, trust={"keys": {"next": NEXT.public}}).phase
    assert (13, {"ops", "next"}) == (board.runs, set(board.config.trust.keys))


def test_p05_floors_are_written_again_into_a_folder_that_was_replaced(board: Board) -> None:
    board.signed(12)
    shutil.rmtree(board.folder)
    board.folder.mkdir()
    board.config.store()
    board.restart()
    assert 12 == board.runs
    says(board.signed(11), "below 12")


def test_p05_an_empty_payload_does_not_remove_but_a_signed_layer_with_empty_settings_does(board: Board) -> None:
    board.signed(12)
    says(board.push(b""), "an empty payload removes nothing on this device")
    assert 12 == board.runs
    assert "applied" == board.push(OPS.sign(TOPIC["device"], {"revision": 13, "settings": {}})).phase
    assert 256 == board.runs
    says(board.signed(12), "below 13")
    assert 256 == board.runs


def test_p05_an_expired_layer_is_refused_but_what_was_applied_before_stays(board: Board) -> None:
    says(board.signed(12, expires_at=AN_HOUR_AGO), "expires_at: is over", "2027-01-15T07:00:00")
    timely = signed(13, expires_at=IN_AN_HOUR)
    assert "applied" == board.push(timely).phase
    assert "applied" == board.push(timely, now=NOW + 7200).phase
    (board.folder / "layers.json").unlink()
    board.restart()
    assert "applied" == board.push(timely, now=NOW + 7200).phase  # not for the first time
    assert 13 == board.runs
    says(board.push(signed(14, expires_at=IN_AN_HOUR), now=NOW + 7200), "expires_at: is over")


def test_p05_expiry_holds_for_unsigned_layers_too(tmp_path: Path) -> None:
    board = Board(tmp_path, required=False)
    says(board.push(json.dumps(content(12, expires_at=AN_HOUR_AGO)).encode()), "expires_at: is over")
    assert "applied" == board.push(json.dumps(content(12, expires_at=IN_AN_HOUR)).encode()).phase


def test_p05_the_same_layer_in_other_spelling_is_nothing_new(board: Board) -> None:
    board.signed(12)
    assert board.config.apply("device", json.dumps(json.loads(signed(12)), indent=1).encode(), NOW) is None


def test_p05_a_layer_signed_anew_with_another_key_replaces_the_first(tmp_path: Path) -> None:
    board = Board(tmp_path, keys=(OPS, NEXT))
    board.signed(12)
    assert "applied" == board.signed(12, key=NEXT).phase


def test_p05_keys_rotate_by_signed_layers_and_stay_rotated(board: Board) -> None:
    says(board.signed(1, key=NEXT), "'next' is no key")
    board.signed(2, trust={"keys": {"next": NEXT.public}})
    board.restart()
    assert "applied" == board.signed(3, key=NEXT, trust={"withdraw": ["ops"]}).phase
    for _ in range(2):
        says(board.signed(4), "'ops' is no key that this device knows")
        board.restart()
    assert 3 == board.runs
    assert "applied" == board.signed(5, key=NEXT, name="fleet").phase


def test_p05_a_layer_stays_in_force_after_its_key_was_withdrawn(tmp_path: Path) -> None:
    board = Board(tmp_path, keys=(OPS, NEXT))
    board.signed(12)
    board.signed(1, key=NEXT, name="fleet", trust={"withdraw": ["ops"]})
    board.restart()
    assert {"fleet": 1, "device": 12} == board.config.in_force.revisions
    says(board.signed(13), "'ops' is no key")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"withdraw": ["ops"]}, "trust.withdraw: names the key that signed the layer"),
        ({"keys": {"ops": NEXT.public}}, "trust.keys.ops: is the key that signed the layer"),
        ({"keys": {"other": OPS.public}}, "trust.keys.other: is the key that signed the layer"),
        ({"keys": {"second": THIEF.public}}, "trust.keys.second: is the name of another key"),
        ({"keys": {"alias": NEXT.public}}, "trust.keys.alias: this key is known under another name"),
        ({"withdraw": ["opps"]}, "trust.withdraw: names 'opps', which is no key of this device"),
        ({"keys": {f"k{i}": Key("k", 10 + i).public for i in range(63)}}, "trust.keys: would be more than 64 keys"),
    ],
)
def test_p05_a_change_of_keys_that_makes_no_sense_is_refused_whole(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    board = Board(tmp_path, keys=(OPS, Key("second", 2)))
    says(board.signed(1, trust=change), part)
    assert (256, {"ops", "second"}) == (board.runs, set(board.config.trust.keys))


def test_p05_only_a_signed_layer_changes_keys(tmp_path: Path) -> None:
    board = Board(tmp_path, required=False)
    says(board.push(json.dumps(content(1, trust={"keys": {"thief": THIEF.public}})).encode()), "only a signed layer")
    assert {"ops"} == set(board.config.trust.keys)


def test_p05_a_withdrawn_key_does_not_come_back_by_a_replay(tmp_path: Path) -> None:
    """Without required signatures there is no floor, so old layers can be pushed again."""
    board = Board(tmp_path, required=False)
    adding = signed(1, trust={"keys": {"thief": THIEF.public}})
    board.push(adding)
    board.signed(2, trust={"withdraw": ["thief"]})
    says(board.push(adding), "trust.keys.thief: this key was withdrawn")
    assert {"ops"} == set(board.config.trust.keys)


def test_p05_a_repeated_layer_does_not_change_keys_again(tmp_path: Path) -> None:
    board = Board(tmp_path, keys=(OPS, NEXT))
    adding = signed(1, trust={"keys": {"thief": THIEF.public}})
    board.push(adding)
    board.signed(2, key=NEXT, name="fleet", trust={"withdraw": ["thief"]})
    (board.folder / "layers.json").unlink()
    board.restart()
    assert "applied" == board.push(adding).phase
    assert {"ops", "next"} == set(board.config.trust.keys)


def test_p05_a_repeated_layer_does_not_withdraw_the_key_that_the_owner_put_in_place_of_the_old(tmp_path: Path) -> None:
    board = Board(tmp_path, keys=(OPS, NEXT))
    withdrawing = signed(1, key=NEXT, trust={"withdraw": ["ops"]})
    board.push(withdrawing)
    board.owner["trust"]["keys"]["ops"] = THIEF.public  # type: ignore[index]
    (board.folder / "layers.json").unlink()
    board.restart()
    assert "applied" == board.push(withdrawing).phase
    assert {"ops", "next"} == set(board.config.trust.keys)


def test_p05_unsigned_layers_on_the_disk_are_not_in_force_once_signatures_are_required(tmp_path: Path) -> None:
    board = Board(tmp_path, required=False)
    board.push(json.dumps(content(12)).encode())
    board.owner["trust"]["require_signature"] = True
    board.restart()
    assert (256, {}) == (board.runs, board.config.in_force.revisions)


def test_p05_layers_of_a_key_that_the_owner_took_out_of_the_file_are_not_in_force(tmp_path: Path) -> None:
    board = Board(tmp_path, keys=(OPS, NEXT))
    board.signed(12)
    del board.owner["trust"]["keys"]["ops"]  # type: ignore[attr-defined]
    board.restart()
    assert (256, {}) == (board.runs, board.config.in_force.revisions)


def test_p05_a_power_cut_between_floor_and_layer_leaves_the_old_layer_and_takes_the_new_again(board: Board) -> None:
    """The floor is written first."""
    board.signed(12)
    before = (board.folder / "layers.json").read_bytes()
    board.signed(13)
    (board.folder / "layers.json").write_bytes(before)
    board.restart()
    assert 12 == board.runs
    says(board.signed(12, expires_at=IN_AN_HOUR), "below 13")
    assert "applied" == board.signed(13).phase


GOOD = [
    signed(12),
    signed(13, expires_at=IN_AN_HOUR),
    signed(14, trust={"keys": {"next": NEXT.public}}),
    OPS.sign(TOPIC["device"], {"revision": 15, "settings": {"limits": {"queue": 3}, "log": {"level": "error"}}}),
    json.dumps(content(16)).encode(),
    json.dumps({"revision": 17, "settings": {}}).encode(),
]


def mutated(draw: random.Random) -> bytes:
    """A good layer with a few bytes changed, a part replaced, or a part of another one put in."""
    layer = draw.choice(GOOD)
    kind = draw.randrange(3)
    if kind == 0:
        raw = bytearray(layer)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(raw))
            piece = bytes(draw.choices(b'{}[]",:0123e-. \x00\xff\xc3azAZ+/=', k=draw.randint(1, 4)))
            raw[at : at + draw.choice([0, 1, len(piece), 20])] = piece
        return bytes(raw)
    document, other = json.loads(layer), json.loads(draw.choice(GOOD))
    if kind == 1:
        key = draw.choice(sorted(document))
        document[key] = draw.choice([None, 0, -1, 2**53 - 1, "", "x", [], {}, {"a": 1}, True, 1.5, AN_HOUR_AGO])
    else:
        key = draw.choice(sorted({*document, *other}))
        document.pop(key, None)
        document |= {key: other[key]} if key in other else {}
    return json.dumps(document).encode()


def test_p05_500_layers_mutated_from_good_ones_change_nothing_and_are_each_reported(board: Board) -> None:
    board.signed(11)
    before = (board.config.in_force, board.config.trust.keys, board.config.trust.record)
    harmless = {json.dumps(json.loads(layer), sort_keys=True) for layer in GOOD if b"signature" in layer}
    draw, tried = random.Random(5), 0
    while tried < 500:
        payload = mutated(draw)
        try:
            if json.dumps(json.loads(payload), sort_keys=True) in harmless:
                continue  # only spaces were changed, or the same part put back
        except (ValueError, RecursionError):
            pass
        tried += 1
        update = board.config.apply("device", payload, NOW)
        assert update is not None, payload
        assert "rejected" == update.report.phase, (payload, update.report.reason)
        assert update.report.reason
        assert before == (board.config.in_force, board.config.trust.keys, board.config.trust.record), payload
    board.restart()
    assert before == (board.config.in_force, board.config.trust.keys, board.config.trust.record)
    shutil.rmtree(board.folder)
