"""A mosquitto as config/mosquitto.conf sets it up, with accounts and an access list."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT, Broker

SHIPPED = ROOT / "config" / "mosquitto.conf"
PLAIN = {"certfile /etc/mosquitto/broker.pem\n": "", "keyfile /etc/mosquitto/broker.key\n": ""}
"""What is replaced for a broker without TLS."""


def password_of(user: str) -> str:
    return f"password of {user}"


@contextmanager
def secured(
    folder: Path, access_list: str, users: Iterable[str], replaced: dict[str, str] | None = None
) -> Iterator[Broker]:
    """Started with the file's settings, but for the port and the places of its files."""
    (folder / "acl").write_text(access_list)
    passwords = folder / "passwd"
    passwords.write_text("".join(f"{user}:{password_of(user)}\n" for user in users))
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
    text = SHIPPED.read_text("utf-8")
    for old, new in {"listener 8883\n": "", **(replaced or {})}.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace("/etc/mosquitto/", f"{folder}/").replace("/var/lib/mosquitto/", f"{folder}/")
    broker = Broker(folder, f"{text}user root\n")  # it reads files of whoever runs the tests
    try:
        yield broker.start()
    finally:
        broker.stop()


def certificates(folder: Path, *names: str) -> None:
    """A CA, the broker's certificate and one for each name, made as docs/how-to/secure-the-broker.md says."""

    def openssl(words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    openssl(f"req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=home-ca")
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("broker", *names):
        openssl(f"req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}")
        openssl(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions "
                f"-out {name}.pem")  # fmt: skip
