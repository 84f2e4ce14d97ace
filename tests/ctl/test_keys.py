"""Keys of the operator's, and layers signed with them: without a broker."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged.core.errors import ConfigError
from edged.ctl import config, keys
from edged.ctl.main import main
from edged.wire import signatures

TARGET = config.Target("home", device="pi")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "edged" / "keys"


def new(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert 0 == main(["keys", "new", name, "--json"])
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_a_new_key_is_its_owners_alone_and_its_line_fits_the_devices_config(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        assert 0 == main(["keys", "new", "ops-2026"])
    finally:
        os.umask(before)
    path = folder / "ops-2026.pem"
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode))
    device = tmp_path / "edged.yaml"
    device.write_text(capsys.readouterr().out.splitlines()[-1] + "\n")
    from edged.config import file

    settings = file.load(device, {})
    assert {"keys": {"ops-2026": keys.load(path).public}, "require_signature": True} == settings["trust"]


def test_a_key_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = new("ops", capsys)
    assert 1 == main(["keys", "new", "ops"])
    assert "exists already" in capsys.readouterr().err
    assert first["public"] == keys.load(folder / "ops.pem").public


def test_list_and_fingerprint_show_what_new_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["keys", "list"])
    assert "no keys in" in capsys.readouterr().out
    made = new("ops", capsys)
    (folder / "junk.pem").write_text("junk")
    assert 0 == main(["keys", "list", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [{key: made[key] for key in ("name", "public", "fingerprint")}] == listed["keys"]
    assert [str(folder / "junk.pem")] == list(listed["unusable"])
    assert 0 == main(["keys", "list"])
    assert "is no private key" in capsys.readouterr().out
    for key in ("ops", made["public"], made["file"]):
        assert 0 == main(["keys", "fingerprint", key])
        assert f"{made['fingerprint']}\n" == capsys.readouterr().out
    assert 2 == main(["keys", "fingerprint", "nobody"])
    assert "nobody: cannot be read" in capsys.readouterr().err


def test_a_name_that_no_device_takes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../evil", "", "a b", "-x" * 40):
        assert 2 == main(["keys", "new", "--", name])
        assert capsys.readouterr().err.startswith("edgectl: NAME: ")
    assert not folder.exists()


def test_a_key_made_by_openssl_signs_too(tmp_path: Path) -> None:
    path = tmp_path / "ops.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    key = keys.load(path)
    assert signatures.is_signed_by(key.public, "topic", key.sign({"revision": 1, "settings": {}}, "topic"))


def test_files_that_hold_no_usable_key_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ops.pem"
    pem, pkcs8 = s.Encoding.PEM, s.PrivateFormat.PKCS8
    encrypted = Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, s.BestAvailableEncryption(b"x"))
    other = generate_private_key(SECP256R1()).private_bytes(pem, pkcs8, s.NoEncryption())
    for data, says in ((encrypted, "is encrypted"), (other, "is no Ed25519 key"), (b"\0" * 20_000, "is no private")):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=says) as caught:
            keys.load(path)
        assert str(path) in str(caught.value)


@pytest.fixture
def key(folder: Path, capsys: pytest.CaptureFixture[str]) -> keys.SigningKey:
    return keys.load(Path(new("ops", capsys)["file"]))


def pushed(key: keys.SigningKey | None, text: str | None, folder: Path, current: bytes = b"", **in_force: int) -> Any:
    """The layer that `config push` would send, with devices that report these revisions of the device's layer."""
    path = folder / "layer.yaml"
    path.write_text(text or "")
    reports = {name: {"in_force": {"device": revision}} for name, revision in in_force.items()}
    payload, _ = config._payload(None if text is None else path, TARGET, key, current, reports, {})
    return json.loads(payload)


def test_what_is_pushed_with_a_key_is_signed_for_its_topic(key: keys.SigningKey, folder: Path) -> None:
    layer = pushed(key, "generation: {max_tokens: 3}", folder)
    assert (1, {"generation": {"max_tokens": 3}}) == (layer["revision"], layer["settings"])
    assert signatures.is_signed_by(key.public, "edged/v1/home/device/pi/config", layer)
    assert {"revision": 1, "settings": {}} == {k: v for k, v in pushed(key, None, folder).items() if k != "signature"}


def test_expiry_and_changes_of_keys_come_from_the_file(key: keys.SigningKey, folder: Path) -> None:
    text = f"expires_at: 2026-12-01T00:00:00Z\nsettings: {{}}\ntrust: {{keys: {{next: {'A' * 43}=}}}}"
    layer = pushed(key, text, folder)
    assert ("2026-12-01T00:00:00.000Z", {"keys": {"next": "A" * 43 + "="}}) == (layer["expires_at"], layer["trust"])
    assert {"withdraw": ["old"]} == pushed(key, "trust: {withdraw: [old]}", folder)["trust"]


def test_p05_a_foreign_layer_at_the_broker_does_not_raise_the_revision_that_is_signed(
    key: keys.SigningKey, folder: Path
) -> None:
    last = 2**53 - 1
    foreign = json.dumps({"revision": last, "settings": {}}).encode()
    own = json.dumps(key.sign({"revision": 20, "settings": {}}, TARGET.topic)).encode()
    moved = json.dumps(key.sign({"revision": 20, "settings": {}}, "edged/v1/home/config")).encode()
    for current, revision in ((b"", 8), (b"junk", 8), (foreign, 8), (moved, 8), (own, 21)):
        assert revision == pushed(key, "{}", folder, current, pi=7)["revision"], current
    assert 5 == pushed(key, "revision: 5\nsettings: {}", folder, own, pi=7)["revision"]
    assert 10 == pushed(None, "{}", folder, b'{"revision":5,"settings":{}}', pi=9)["revision"]


def test_a_layer_that_cannot_be_signed_is_refused_with_its_file(key: keys.SigningKey, folder: Path) -> None:
    for text in ("generation: {system: 2026-01-01}", "revision: 9007199254740992\nsettings: {}"):
        with pytest.raises(ConfigError, match=r"layer\.yaml: "):
            pushed(key, text, folder)
