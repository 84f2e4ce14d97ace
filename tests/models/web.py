"""A web server on the loopback that cuts connections, and what it serves."""

from __future__ import annotations

import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DATA = b"GGUF" + bytes(range(256)) * 4000


def quiet(done: int, total: int | None, what: str) -> None:
    """Progress that nobody reads."""


class Web(ThreadingHTTPServer):
    """Serves `files`; the next answers are cut after as many bytes as `cuts` says. Remembers the ranges asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.whole_only = False
        self.length: str | None = None
        self.scoped_length: tuple[str, str] | None = None
        """A path, and the Content-Length that is sent there."""
        self.scripted: dict[str, list[tuple[int, dict[str, str]]]] = {}
        """Answers without a body that come first on a path; the last one of a list stays."""
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        web: Any = self.server
        asked = self.headers.get("Range")
        web.ranges.append(asked)
        path = self.path.split("?")[0]
        if scripted := web.scripted.get(path):
            status, headers = scripted.pop(0) if len(scripted) > 1 or scripted[0][0] == 0 else scripted[0]
            if status:
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                return
        data = web.files.get(path)
        if data is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and not web.whole_only else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        scoped = web.scoped_length
        length = scoped[1] if scoped and scoped[0] == path else web.length
        self.send_header("Content-Length", length or str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:8]}"')
        self.end_headers()
        body = data[start:]
        self.wfile.write(body[: web.cuts.pop(0)] if web.cuts else body)

    def log_message(self, *_: object) -> None:
        """Silent."""
