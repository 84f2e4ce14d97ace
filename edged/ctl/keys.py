"""`edgectl keys`: key pairs that sign config layers. A private key is a PEM file (PKCS #8) that its owner alone reads.

The file's name without its suffix is the key's name, under which devices know its public key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edged.config.keys import key_name, public_key
from edged.core.errors import BadValue, ConfigError, EdgedError
from edged.wire import signatures

_MAX_BYTES = 10_000


@dataclass(frozen=True)
class SigningKey:
    """A private key with its name."""

    name: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public key as `trust.keys` takes it."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()

    def sign(self, document: dict[str, Any], topic: str) -> dict[str, Any]:
        """The layer, signed for this topic. Raises BadValue."""
        return signatures.signed(document, topic, self.name, self.private.sign)


def default_folder() -> Path:
    """Where keys lie unless `--folder` names another place."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "edged" / "keys"


def load(path: Path) -> SigningKey:
    """Read a private key. Raises ConfigError with what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make a key with edgectl keys new") from None
    try:
        private = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise ConfigError(f"{path}: is encrypted; decrypt it with openssl pkey -in {path} -out FILE") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: is no private key in a PEM file; make one with edgectl keys new") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is no Ed25519 key; make one with edgectl keys new")
    try:
        return SigningKey(key_name("the file's name", path.stem), private)
    except BadValue as error:
        raise ConfigError(f"{path}: {error}") from None


def fingerprint(public: str) -> str:
    """SHA-256 of the 32 bytes of a public key."""
    return "sha256:" + hashlib.sha256(base64.b64decode(public)).hexdigest()


def new(name: str, folder: Path, as_json: bool) -> int:
    """Make a key pair; never replaces a file. Raises BadValue, EdgedError."""
    path = folder / f"{key_name('NAME', name)}.pem"
    key = SigningKey(name, Ed25519PrivateKey.generate())
    text = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise EdgedError(f"{path} exists already; choose another name, keys are never replaced") from None
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if as_json:
        print(json.dumps({**_shown(key), "file": str(path)}))
        return 0
    print(f"private key: {path} (keep a copy in a safe place, and give it to nobody)")
    print(f"fingerprint: {fingerprint(key.public)}")
    print("for the devices' config:")
    print(f"trust: {{keys: {{{name}: {key.public}}}, require_signature: true}}")
    return 0


def show_all(folder: Path, as_json: bool) -> int:
    """List the keys of a folder. A file that is no key is listed with the reason."""
    keys, bad = [], {}
    for path in sorted(folder.glob("*.pem")):
        try:
            keys.append(load(path))
        except ConfigError as error:
            bad[str(path)] = str(error)
    if as_json:
        print(json.dumps({"folder": str(folder), "keys": [_shown(key) for key in keys], "unusable": bad}))
        return 0
    console = Console(highlight=False)
    table = Table("key", "public key", "fingerprint", box=None, header_style="bold")
    for key in keys:
        table.add_row(key.name, key.public, fingerprint(key.public))
    if keys:
        console.print(table)
    else:
        console.print(f"no keys in {escape(str(folder))}; make one with edgectl keys new NAME", soft_wrap=True)
    for reason in bad.values():
        console.print(escape(reason), soft_wrap=True)
    return 0


def show_fingerprint(key: str, folder: Path, as_json: bool) -> int:
    """Print the fingerprint of a public key, of a private key's file, or of a key in the folder by its name."""
    try:
        public = public_key("KEY", key)
    except BadValue:
        named = folder / f"{key}.pem"
        public = load(Path(key) if not named.is_file() or "/" in key else named).public
    print(json.dumps({"public": public, "fingerprint": fingerprint(public)}) if as_json else fingerprint(public))
    return 0


def _shown(key: SigningKey) -> dict[str, str]:
    return {"name": key.name, "public": key.public, "fingerprint": fingerprint(key.public)}
