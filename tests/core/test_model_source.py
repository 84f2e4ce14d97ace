"""Where a model comes from is decided by its source's text, the same for the daemon and the commands."""

from __future__ import annotations

import pytest

from edged.core.model_source import SourceKind, source_kind


@pytest.mark.parametrize(
    ("source", "kind", "remote"),
    [
        ("smollm2-135m-instruct", SourceKind.NAME, True),
        ("qwen2.5-0.5b", SourceKind.NAME, True),
        ("hf:owner/name", SourceKind.HUB, True),
        ("hf:owner/name/model.gguf@main", SourceKind.HUB, True),
        ("https://example.org/models/model.gguf", SourceKind.URL, True),
        ("http://127.0.0.1:8000/model.gguf?token=x", SourceKind.URL, True),
        ("sha256:" + "0" * 64, SourceKind.DIGEST, False),
        ("/models/x.gguf", SourceKind.PATH, False),
        ("/models/x", SourceKind.PATH, False),
        ("./x", SourceKind.PATH, False),
        ("models/x", SourceKind.PATH, False),
        ("~/x", SourceKind.PATH, False),
        ("x.gguf", SourceKind.PATH, False),
    ],
)
def test_a_source_has_one_kind_and_only_some_are_fetched(source: str, kind: SourceKind, remote: bool) -> None:
    assert kind == source_kind(source)
    assert remote == source_kind(source).remote
