"""The default name of a device, for a config that gives none."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def device_name(host: str, machine_id: str) -> str:
    """The host name made to fit, a dash and the first four hex digits of the machine id (of the host name's hash)."""
    fitted = re.sub(r"[^a-z0-9-]+", "-", host.lower()).strip("-")[:58].rstrip("-") or "device"
    digits = machine_id[:4] if re.match(r"[0-9a-f]{4}", machine_id) else hashlib.sha256(host.encode()).hexdigest()[:4]
    return f"{fitted}-{digits}"


def machine_id() -> str:
    """The machine id that systemd or D-Bus keeps; empty where there is none."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""
