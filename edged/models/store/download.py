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
_JSON_TRIES: Final = 3
_LONGEST_WAIT: Final = 60.0  # seconds that a server may ask to wait
_ROOM_STEP: Final = 64_000_000  # bytes of a file without a known size between two looks at the disk
_TIMEOUT: Final = 60.0  # seconds without an answer or a byte
_MAX_JSON: Final = 64_000_000


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `size` in bytes and `sha256` (64 hex digits) are checked where they are known.

    `room` is called with the number of bytes once the server has sent it, and while a file without a size grows; it
    raises where they do not fit.
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
    tries, furthest = 0, _size(part)
    resumed = furthest > 0
    while True:
        try:
            total = _attempt(remote, part, progress)
        except (OSError, http.client.HTTPException) as error:
            _stop_if_final(remote.url, remote.what, error)
            # A part may have been begun again: what was fetched before is no progress.
            tries, furthest = (1, _size(part)) if _size(part) > furthest else (tries + 1, furthest)
            if tries >= _TRIES:
                raise ModelError(
                    "unreachable",
                    f"{remote.what} cannot be fetched from {_host(remote.url)} ({_reason(error)}); "
                    "check the network and run the same command again; it resumes where it stopped.",
                ) from error
            sleep(_wait(error, tries))
            continue
        if remote.size not in {None, total} or (remote.sha256 and file_sha256(part) != remote.sha256):
            part.unlink(missing_ok=True)
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


def fetch_json(url: str, accept: str, what: str, sleep: Callable[[float], None] = time.sleep) -> Any:
    """A JSON document. Raises ModelError `unreachable`, or `missing` where there is none."""
    for tries in range(1, _JSON_TRIES + 1):
        try:
            with _open(url, {"Accept": accept}) as answer:
                return json.loads(_whole(answer))
        except (ValueError, RecursionError) as error:
            raise ModelError(
                "unreachable", f"The answer of {_host(url)} about {what} is not valid JSON; try again later."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            _stop_if_final(url, what, error)
            if tries == _JSON_TRIES:
                raise ModelError(
                    "unreachable",
                    f"{what} cannot be requested from {_host(url)} ({_reason(error)}); "
                    "check the network and try again.",
                ) from error
            sleep(_wait(error, tries))
    raise AssertionError


def _whole(answer: Any) -> bytes:
    """The body of a small answer; one that ends early is no answer."""
    body: bytes = answer.read(_MAX_JSON)
    if getattr(answer, "length", 0):
        raise ConnectionResetError("the connection ended early")
    return body


def _wait(error: Exception, tries: int) -> float:
    """Seconds before another try: what the server asks for where it does, else ever more."""
    own = min(8.0, 0.5 * 2**tries)
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(_LONGEST_WAIT, float(asked)) if _LENGTH.fullmatch(asked) else own


def _attempt(remote: Remote, part: Path, progress: Progress) -> int:
    """One connection. Returns the file's size; raises OSError where it ended early."""
    at = _size(part)
    if remote.size is not None and at == remote.size:
        return at
    with _ask(remote, part, at) as answer:
        at = _first_byte(answer, at)
        length = answer.headers.get("Content-Length", "")
        total = at + int(length) if _LENGTH.fullmatch(length) else None
        if total is not None and remote.size not in {None, total}:
            return total  # another file than the expected one
        if remote.room and total is not None:
            remote.room(total - at)
        looked_at = at
        if tag := answer.headers.get("ETag", ""):
            _etag(part).write_text(tag, "latin-1")
        with part.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.truncate()
            while block := answer.read(_BLOCK):
                file.write(block)
                at += len(block)
                progress(at, total or remote.size, remote.what)
                if remote.room and total is None and at - looked_at >= _ROOM_STEP:
                    looked_at = at
                    remote.room(_ROOM_STEP)
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
    try:
        return urllib.request.build_opener(handler, _Redirects).open(request, timeout=_TIMEOUT)
    except ValueError as error:  # of a Location that is no address; InvalidURL is one, too
        raise OSError(f"its answer is not valid ({error})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows at most five redirects, never from https to anything else; a login is for its own host alone."""

    max_redirections = 5
    max_repeats = 2

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request to follow with. Raises ModelError."""
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if after.scheme != "https" and (before.scheme == "https" or after.scheme != "http"):
            raise ModelError(
                "unreachable",
                f"{_host(req.full_url)} redirects to an address that is not encrypted ({after.scheme}:), "
                "which is not followed; use another source.",
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and before.netloc != after.netloc:
            request.headers.pop("Authorization", None)
        return request


def _stop_if_final(url: str, what: str, error: Exception) -> None:
    """Raises ModelError where trying again would not help."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise ModelError(
            "no_disk", f"The disk is full while fetching {what}; free some space and pull it again."
        ) from error
    if isinstance(error, urllib.error.HTTPError):
        _stop_if_refused(url, what, error)
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLCertVerificationError):
        raise ModelError(
            "unreachable",
            f"The certificate of {_host(url)} is not trusted ({error.reason.verify_message}); "
            "check the clock and the system's certificates.",
        ) from error


def _stop_if_refused(url: str, what: str, error: urllib.error.HTTPError) -> None:
    if error.code in {401, 403}:
        raise ModelError(
            "unreachable",
            f"{_host(url)} asks for a login for {what}; download the file yourself and pull it from its path.",
        ) from error
    if error.code in {404, 410}:
        raise ModelError("missing", f"{_host(url)} does not have {what}; check its name.") from error
    if error.code // 100 == 3:
        raise ModelError(
            "unreachable",
            f"{_host(url)} redirects in a circle, too often or to no web address for {what}; use another source.",
        ) from error


def _etag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "the server"


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code == 429:
        return "it had too many requests"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason) or type(error).__name__
