"""Resumable, verified downloads over HTTP, with the standard library and the system's certificates and proxies."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.digest import file_sha256

Progress = Callable[[int, int | None, str], None]
"""Gets bytes done, bytes in all (None where unknown) and what is being done."""
_BLOCK: Final = 1 << 18
_LENGTH: Final = re.compile("[0-9]{1,18}")  # Python refuses to read thousands of digits; `²` is one to str.isdigit
_TRIES: Final = 5  # in a row without a new byte
_TIMEOUT: Final = 60.0  # seconds without an answer or a byte
_MAX_JSON: Final = 64_000_000


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `size` in bytes and `sha256` (64 hex digits) are checked where they are known.

    `room` is called with the number of bytes once the server has sent it, and raises where they do not fit.
    """

    url: str
    what: str
    size: int | None = None
    sha256: str | None = None
    room: Callable[[int], None] | None = None


def download(remote: Remote, part: Path, progress: Progress, sleep: Callable[[float], None] = time.sleep) -> None:
    """Fetches a file to `part`, resuming from what is there already.

    An interrupted connection is resumed; after five attempts without a new byte, ModelError `unreachable` (what was
    fetched stays for the next time). ModelError `tampered` where the whole file is not the expected one, `no_disk`
    where it does not fit.
    """
    tries = 0
    resumed = part.exists() and part.stat().st_size > 0
    while True:
        before = _size(part)
        try:
            total = _attempt(remote, part, progress)
        except (OSError, http.client.HTTPException) as error:
            _stop_if_final(remote, error)
            tries = 1 if _size(part) > before else tries + 1
            if tries >= _TRIES:
                raise ModelError(
                    "unreachable",
                    f"{remote.what} cannot be fetched from {_host(remote.url)} ({_reason(error)}); "
                    "check the network and run the same command again; it resumes where it stopped.",
                ) from error
            sleep(min(8.0, 0.5 * 2**tries))
            continue
        if remote.size not in {None, total} or (remote.sha256 and file_sha256(part) != remote.sha256):
            part.unlink()
            if resumed:  # the beginning may have been of another file
                resumed = False
                continue
            raise ModelError(
                "tampered",
                f"{remote.what} from {_host(remote.url)} is not the expected file (size or SHA-256 differ); "
                "nothing of it was kept; try again, and if that fails too, do not use this source.",
            )
        _etag(part).unlink(missing_ok=True)
        return


def fetch_json(url: str, accept: str, what: str) -> Any:
    """A JSON document. Raises ModelError `unreachable`, or `missing` where there is none."""
    try:
        with _open(url, {"Accept": accept}) as answer:
            return json.loads(answer.read(_MAX_JSON))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 404:
            raise ModelError("missing", f"{_host(url)} does not have {what}; check its name.") from error
        raise ModelError(
            "unreachable",
            f"{what} cannot be requested from {_host(url)} ({_reason(error)}); check the network and try again.",
        ) from error


def _attempt(remote: Remote, part: Path, progress: Progress) -> int:
    """One connection. Returns the file's size; raises OSError where it ended early."""
    at = _size(part)
    if remote.size is not None and at == remote.size:
        return at
    with _ask(remote, part, at) as answer:
        at = _first_byte(answer, at)
        length = answer.headers.get("Content-Length", "")
        total = at + int(length) if _LENGTH.fullmatch(length) else None
        if remote.room and total is not None:
            remote.room(total - at)
        if tag := answer.headers.get("ETag", ""):
            _etag(part).write_text(tag, "latin-1")
        with part.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.truncate()
            while block := answer.read(_BLOCK):
                file.write(block)
                at += len(block)
                progress(at, total or remote.size, remote.what)
                if remote.size is not None and at > remote.size:
                    return at
    if total is not None and at < total:
        raise ConnectionResetError("the connection ended early")
    return at


def _ask(remote: Remote, part: Path, at: int) -> Any:
    """Asks for the file from byte `at` on, where it can be known that it is still the same file."""
    etag = _etag(part)
    headers = {"Accept-Encoding": "identity"}
    if at and (remote.sha256 or etag.exists()):
        headers["Range"] = f"bytes={at}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text("latin-1")
    try:
        return _open(remote.url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)  # the part is complete, or the file is another now
        raise ConnectionResetError("the range is refused") from error


def _first_byte(answer: Any, at: int) -> int:
    """Where the answer begins: at `at`, or at 0 from a server that sends all of it again."""
    if answer.status != 206:
        return 0
    begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    if begins != str(at):
        raise ConnectionResetError("the server sent another range")
    return at


def _open(url: str, headers: dict[str, str]) -> Any:
    """Opens an http or https address; a user name and password in it become an Authorization header."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise ModelError("unreachable", f"Addresses beginning with {parts.scheme}: cannot be fetched; use https.")
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers = headers | {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(url, headers={"User-Agent": "edged"} | headers)  # noqa: S310 checked above
    handler = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    return urllib.request.build_opener(handler).open(request, timeout=_TIMEOUT)


def _stop_if_final(remote: Remote, error: Exception) -> None:
    """Raises ModelError where trying again would not help."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise ModelError(
            "no_disk", f"The disk is full while fetching {remote.what}; free some space and pull it again."
        ) from error
    if isinstance(error, urllib.error.HTTPError) and error.code in {401, 403}:
        raise ModelError(
            "unreachable",
            f"{_host(remote.url)} asks for a login for {remote.what}; download "
            "the file yourself and pull it from its path.",
        ) from error
    if isinstance(error, urllib.error.HTTPError) and error.code in {404, 410}:
        raise ModelError("missing", f"{_host(remote.url)} does not have {remote.what}; check its name.") from error
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLCertVerificationError):
        raise ModelError(
            "unreachable",
            f"The certificate of {_host(remote.url)} is not trusted ({error.reason.verify_message}); "
            "check the clock and the system's certificates.",
        ) from error


def _etag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "the server"


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason) or type(error).__name__
