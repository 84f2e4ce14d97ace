"""Downloads: resumed after a cut, verified, with plain errors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edged.core.errors import ModelError
from edged.models.store.download import Remote, download
from edged.models.store.store import Store
from tests.models.web import DATA, Web, quiet


def get(remote: Remote, part: Path) -> None:
    download(remote, part, quiet, sleep=lambda _: None)


def test_a_cut_connection_is_taken_up_again(web: Web, tmp_path: Path) -> None:
    web.files["/m"] = DATA
    web.cuts = [100_000, 300_000]
    get(Remote(f"{web.url}/m", "m", len(DATA), hashlib.sha256(DATA).hexdigest()), tmp_path / "part")
    assert DATA == (tmp_path / "part").read_bytes()
    assert [None, "bytes=100000-", "bytes=400000-"] == web.ranges


def test_a_server_without_ranges_and_a_file_that_changed(web: Web, tmp_path: Path) -> None:
    part, digest = tmp_path / "part", hashlib.sha256(DATA).hexdigest()
    web.files["/m"] = DATA
    web.whole_only = True
    part.write_bytes(b"x" * 1000)
    get(Remote(f"{web.url}/m", "m", None, digest), part)
    assert DATA == part.read_bytes()

    web.whole_only = False
    part.write_bytes(b"x" * 1000)  # the beginning of another file: found by the digest, fetched again once
    get(Remote(f"{web.url}/m", "m", None, digest), part)
    assert DATA == part.read_bytes()

    part.write_bytes(DATA + b"more")  # 416
    get(Remote(f"{web.url}/m", "m", None, digest), part)
    assert DATA == part.read_bytes()


def test_errors_of_downloads(web: Web, tmp_path: Path) -> None:
    web.files["/m"] = DATA
    cases = [
        (Remote(f"{web.url}/m", "m", None, "0" * 64), "tampered"),
        (Remote(f"{web.url}/m", "m", 5), "tampered"),
        (Remote(f"{web.url}/none", "m"), "missing"),
        (Remote("http://127.0.0.1:9/m", "m"), "unreachable"),
        (Remote("file:///etc/hostname", "m"), "unreachable"),
    ]
    for remote, code in cases:
        with pytest.raises(ModelError) as caught:
            get(remote, tmp_path / "part")
        assert code == caught.value.code
        assert "Traceback" not in str(caught.value)
    with pytest.raises(ModelError) as caught:
        Store(tmp_path).check_room(1 << 60)
    assert "no_disk" == caught.value.code


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", "1 1"])
def test_a_length_that_is_no_number_is_not_used(web: Web, tmp_path: Path, length: str) -> None:
    """Python's `isdigit` takes the first, and `int` refuses to read the second."""
    web.files["/m"], web.length = DATA, length
    get(Remote(f"{web.url}/m", "m", len(DATA), hashlib.sha256(DATA).hexdigest()), tmp_path / "part")
    assert DATA == (tmp_path / "part").read_bytes()
