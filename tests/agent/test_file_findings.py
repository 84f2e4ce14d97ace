"""The agent's own files: damage and rights that others should not have are findings and events."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edged.agent.file_findings import FileFindings
from edged.agent.journal import Journal


class Bench:
    """Findings over a journal in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.events: list[tuple[str, str]] = []
        self.password = folder / "password"
        self.password.write_text("secret\n")
        self.password.chmod(0o600)
        self.journal = Journal(folder / "journal.db")
        self.files = FileFindings(
            self.journal, folder, str(self.password), lambda code, message: self.events.append((code, message))
        )

    def codes(self) -> list[str]:
        return [finding.code for finding in self.files.findings(5.0, ())]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_sound_files_are_no_finding(bench: Bench) -> None:
    bench.journal.open()
    assert not bench.files.check()
    assert (bench.codes(), bench.events) == ([], [])
    bench.journal.close()


def test_p02_a_damaged_journal_is_one_event_and_a_finding(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"garbage" * 1000)
    bench.journal.open()
    assert bench.files.check("the layers are damaged")
    assert not bench.files.check("the layers are damaged")
    assert [code for code, _ in bench.events] == ["journal_damaged", "layers_damaged"]
    assert str(tmp_path / "journal.damaged") in bench.events[0][1]
    assert bench.codes() == ["journal_damaged", "layers_damaged"]
    bench.journal.close()


def test_p05_damaged_floors_are_one_event_and_a_finding_until_the_owner_resets_them(bench: Bench) -> None:
    bench.journal.open()
    assert bench.files.check(None, "the floors are damaged")
    assert not bench.files.check()
    assert bench.events == [("trust_damaged", "the floors are damaged; stop edged and run edged trust reset")]
    assert bench.codes() == ["trust_damaged"]
    bench.journal.close()


def test_rows_that_are_dropped_while_in_use_are_reported(bench: Bench) -> None:
    bench.journal.open()
    bench.journal.dropped = 2
    assert bench.files.check()
    assert not bench.files.check()
    assert bench.events == [("journal_damaged", "2 damaged rows of the journal were dropped")]
    bench.journal.close()


@pytest.mark.parametrize(
    ("mode", "codes"), [(0o600, []), (0o640, []), (0o644, ["password_exposed"]), (0o660, ["password_exposed"])]
)
def test_a_password_that_others_can_read_is_a_finding(bench: Bench, mode: int, codes: list[str]) -> None:
    bench.password.chmod(mode)
    assert bench.codes() == codes


def test_a_state_folder_that_others_can_read_is_tightened(bench: Bench, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert bench.codes() == []
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
