"""What kind of place a model source names."""

from __future__ import annotations

import pytest

from edged.core.model_source import SourceKind, source_kind


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("smollm2-135m-instruct", "name"),
        ("my-folder", "name"),
        ("", "name"),
        (f"sha256:{'0' * 64}", "digest"),
        ("sha256:", "digest"),
        ("hf:owner/name/file.gguf@main", "hub"),
        ("http://127.0.0.1/m.gguf", "address"),
        ("https://example.org/m.gguf?download=true", "address"),
        ("ftp://example.org/m", "path"),
        ("/srv/model", "path"),
        ("./model", "path"),
        ("~/model", "path"),
        ("models/model", "path"),
        ("model.gguf", "path"),
    ],
)
def test_kinds_of_sources(source: str, kind: SourceKind) -> None:
    assert kind == source_kind(source)
