"""A bill of materials in CycloneDX 1.6: what is inside a package, by the metadata of the installed distributions."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for URLs


def normalized(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def _licenses(metadata: Any) -> list[dict[str, Any]]:
    """The expression of PEP 639, else the license field's first line, else the classifiers."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    named = (metadata.get("License") or "").strip()
    if named and "\n" not in named and len(named) <= 60:
        return [{"license": {"name": named}}]
    trove = [value for value in metadata.get_all("Classifier") or [] if value.startswith("License :: ")]
    return [{"license": {"name": value.rpartition(" :: ")[2]}} for value in sorted(trove)]


def _component(distribution: Distribution, hashes: Mapping[str, str]) -> dict[str, Any]:
    name, version = normalized(distribution.metadata["Name"]), distribution.version
    found = {
        "type": "application" if name == "edged" else "library",
        "bom-ref": _purl(name, version),
        "name": name,
        "version": version,
        "description": distribution.metadata.get("Summary") or "",
        "licenses": _licenses(distribution.metadata),
        "purl": _purl(name, version),
    }
    if name in hashes:
        found["hashes"] = [{"alg": "SHA-256", "content": hashes[name]}]
    return {key: value for key, value in found.items() if value}


def _needs(distribution: Distribution, known: Mapping[str, str]) -> list[str]:
    """The components that a distribution names among its requirements, by their references."""
    heads = (re.match(r"[\w.-]+", line) for line in distribution.requires or [])
    named = {normalized(head.group()) for head in heads if head}
    return sorted(known[name] for name in named & known.keys())


def write(path: Path, distributions: Iterable[Distribution], hashes: Mapping[str, str], epoch: int) -> None:
    """Write the bill of `edged` and the distributions it was installed with. `hashes`: SHA-256 of each one's wheel.

    The same input gives the same bytes: the time is `epoch`, and the serial number follows from the content.
    """
    found = sorted(distributions, key=lambda one: normalized(one.metadata["Name"]))
    components = [_component(one, hashes) for one in found]
    references = {component["name"]: component["bom-ref"] for component in components}
    subject = next(component for component in components if component["name"] == "edged")
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject,
        },
        "components": [component for component in components if component is not subject],
        "dependencies": [
            {"ref": references[normalized(one.metadata["Name"])], "dependsOn": _needs(one, references)} for one in found
        ],
    }
    text = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, text)}"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
