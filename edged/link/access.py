"""How a broker is reached: its address, credentials and TLS, and why it cannot be reached."""

from __future__ import annotations

import socket
import ssl
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt

from edged import state_files
from edged.config.schema import Mqtt
from edged.core.errors import BrokerError

_MAX_PASSWORD_FILE: Final = 65_536


def broker_address(url: str) -> tuple[str, int]:
    """Host and port of an `mqtt://` or `mqtts://` URL (default ports 1883 and 8883)."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (8883 if parts.scheme == "mqtts" else 1883)


def configure_access(client: mqtt.Client, settings: Mqtt) -> None:
    """Set user, password and TLS. Raises BrokerError where a file cannot be used."""
    try:
        if settings.username is not None:
            password = None
            if settings.password_file is not None:
                password = read_password(Path(settings.password_file))
            client.username_pw_set(settings.username, password)
        if settings.url.startswith("mqtts://"):
            context = ssl.create_default_context(cafile=settings.ca)
            if settings.cert is not None:
                context.load_cert_chain(settings.cert, settings.key)
            client.tls_set_context(context)
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerError(f"a password or certificate file cannot be used: {error}") from None


def read_password(path: Path) -> str:
    """The first line of a file. Raises OSError or UnicodeDecodeError."""
    return state_files.read(path, _MAX_PASSWORD_FILE).partition(b"\n")[0].rstrip(b"\r").decode("utf-8")


def exposed_password(path: str) -> int | None:
    """The mode of a password file that others than its owner and group can read or write; None where they cannot.

    A group may read it: a service's own group often must.
    """
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except OSError:
        return None
    return mode if mode & (stat.S_IRWXO | stat.S_IWGRP) else None


def in_words(error: Exception) -> str:
    """Why a broker cannot be reached: one sentence for people."""
    if isinstance(error, BrokerError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ConnectionRefusedError):
        return "no broker listens there (connection refused)"
    if isinstance(error, TimeoutError):
        return "the broker's host does not answer"
    if isinstance(error, socket.gaierror):
        return "the name of the broker's host is not known"
    return (isinstance(error, OSError) and error.strerror) or str(error)
