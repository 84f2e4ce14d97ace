"""How the password is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.link.access import read_password


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" s \nsecond line\n", " s "),
        (b"", ""),
    ],
)
def test_the_first_line_counts(tmp_path: Path, content: bytes, password: str) -> None:
    (tmp_path / "password").write_bytes(content)
    assert read_password(tmp_path / "password") == password


def test_what_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "password")
    with pytest.raises(OSError, match="no regular file"):
        read_password(tmp_path / "password")
