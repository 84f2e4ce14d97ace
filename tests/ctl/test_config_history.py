"""How decisions about layers are printed."""

from __future__ import annotations

from edged.ctl.config_history import _lines


def test_a_decision_fits_80_columns_and_its_reason_is_below_without_broken_words() -> None:
    reason = 'the golden prompt \'What is the capital of Japan?\' was answered "Kyoto", which does not contain "Tokyo"'
    decision = {
        "ts": "2026-11-30T21:05:06.123Z",
        "layer": "device",
        "revision": 3,
        "phase": "rolled_back",
        "key": None,
        "reason": reason,
    }
    first, *below = _lines("pi", decision, 80)
    assert "11-30 21:05:06  pi  device revision 3  rolled_back" == first
    assert reason.split() == " ".join(below).split()
    assert max(map(len, below)) <= 80
    assert all(line.startswith("  ") for line in below)


def test_a_removal_a_key_and_odd_documents_are_shown_as_text() -> None:
    removed = {"ts": "2026-11-30T21:05:06Z", "layer": "fleet", "revision": None, "phase": "applied", "key": "ops"}
    assert ["11-30 21:05:06  pi  fleet removed  applied  signed by ops"] == _lines("pi", removed, 80)
    assert ["–  pi  –  \ufffd[2J", "  5"] == _lines("pi", {"phase": "\x1b[2J", "reason": 5}, 80)
