"""Templates and tokenizers of strangers: tried in a process with limits, and a library's panic is an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.core.errors import ModelError
from edged.models.tokenizer import template_check
from edged.models.tokenizer.sources import codec_from_folder
from edged.models.tokenizer.template_check import check_template

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}
PANICS: dict[str, dict[str, Any]] = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "special token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}


@pytest.mark.parametrize("name", PANICS)
def test_a_panic_of_the_tokenizers_library_is_a_bad_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER | PANICS[name]))
    with pytest.raises(ModelError, match="fetch the model again") as caught:
        codec_from_folder(tmp_path)
    assert "bad_model" == caught.value.code


def test_a_sound_tokenizer_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert [0, 1] == codec_from_folder(tmp_path).encode("ab", specials=False)


def test_a_good_template_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}{# tried once #}"
    check_template(source, {"bos_token": "<s>"})
    monkeypatch.setattr(template_check.subprocess, "run", None)  # a second child would fail
    check_template(source, {"bos_token": "<s>"})


def test_a_template_that_refuses_our_chats_is_good() -> None:
    check_template("{{ raise_exception('system turns are not supported') }}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ 'x'.ljust(2000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3,
    ],
)
def test_a_bad_template_is_a_bad_model(source: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_template(source, {})
    assert "bad_model" == caught.value.code


def test_the_childs_own_limits_hold_where_the_sandbox_counts_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "import runpy; runpy.run_module('tests.models.endless', run_name='__main__')"
    monkeypatch.setattr(template_check, "_START", endless)
    with pytest.raises(ModelError, match="too much time or memory") as caught:
        check_template("endless", {})
    assert "bad_model" == caught.value.code
