"""`edgectl serve`: checks the options and runs the server."""

from __future__ import annotations

import argparse
import ipaddress
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final

from edged.config.schema import Settings
from edged.core.errors import ConfigError, EdgedError

DEFAULT_LISTEN: Final = "127.0.0.1:8080"
INSTALL: Final = "edgectl serve needs starlette and uvicorn; install them with: pip install 'starlette' 'uvicorn'"
MIN_TOKEN: Final = 16


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `edgectl serve`, besides those of the connection to the broker."""
    command.add_argument("--listen", default=DEFAULT_LISTEN, metavar="ADDRESS:PORT", help=f"default: {DEFAULT_LISTEN}")
    command.add_argument("--token-file", type=Path, metavar="FILE", help="a secret that every request must carry")
    command.add_argument("--https-cert", type=Path, metavar="FILE", help="certificate chain (PEM): serve HTTPS")
    command.add_argument("--https-key", type=Path, metavar="FILE", help="its private key (PEM)")
    command.add_argument("--host", action="append", default=[], metavar="NAME", help="also answer to this host name")
    command.add_argument("--requester", help="the requester in the topics (default: your user name)")


def serve(settings: Settings, arguments: argparse.Namespace, requester: str) -> int:
    """Run until SIGINT or SIGTERM; returns the exit code. Raises ConfigError, EdgedError."""
    address, port = _listen(arguments.listen)
    token = None if arguments.token_file is None else _token(arguments.token_file)
    if token is None and not _is_loopback(address):
        raise ConfigError(f"--listen {arguments.listen}: another address than the loopback needs --token-file FILE")
    if (arguments.https_cert is None) != (arguments.https_key is None):
        raise ConfigError("give --https-cert and --https-key together")
    try:
        import uvicorn

        from edged.serve.app import ServeOptions, make_app
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] in {"starlette", "uvicorn", "anyio", "h11"}:
            raise EdgedError(INSTALL) from None
        raise
    tls: dict[str, Any] = {}
    if arguments.https_cert is not None:
        tls = {"ssl_certfile": str(arguments.https_cert), "ssl_keyfile": str(arguments.https_key)}
    options = ServeOptions(settings.identity.fleet, requester, token, tuple(arguments.host), bool(tls))
    app = make_app(settings.mqtt, options)
    scheme = "https" if tls else "http"
    print(f"edgectl: fleet {settings.identity.fleet} at {scheme}://{arguments.listen}/", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app, host=address, port=port, log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=3, limit_concurrency=1000, **tls,
    )  # fmt: skip
    server = uvicorn.Server(config)
    try:
        server.run()
    except SystemExit:  # uvicorn could not bind
        return 1
    return 0 if server.started else 1


def _listen(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not address or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"--listen {text}: must be ADDRESS:PORT, for example {DEFAULT_LISTEN}")
    return address.strip("[]"), int(port)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _token(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--token-file {path}: cannot be read ({reason})") from None
    # systemd shows its credentials to the service alone, by an access list that the mode does not show.
    credential = path.parent == Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"))
    if stat.S_IMODE(mode) & 0o077 and not credential:
        raise ConfigError(f"--token-file {path}: others can read it; run: chmod 600 {path}")
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file {path}: must hold {MIN_TOKEN} or more ASCII characters without spaces")
    return token
