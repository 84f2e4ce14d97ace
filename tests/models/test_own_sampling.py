"""A model's own sampling, from its files and the catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.models.own_sampling import own_sampling
from edged.models.store.catalog import catalog
from tests.tiny import written


def folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_checkpoint_gives_those_of_its_generation_config(tmp_path: Path) -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 2, "min_p": None}
    assert {"temperature": 0.6, "top_k": 20, "top_p": 0.95} == own_sampling("m", "", folder(tmp_path, config))


def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    assert {"temperature": 0.0} == own_sampling("m", "", folder(tmp_path, {"do_sample": False}))


@pytest.mark.parametrize("value", [-1, 9, "0.5", True, [0.5], float("nan")])
def test_values_that_no_prompt_could_have_are_left_out(tmp_path: Path, value: object) -> None:
    assert {"top_p": 0.5} == own_sampling("m", "", folder(tmp_path, {"temperature": value, "top_p": 0.5}))


def test_a_gguf_file_gives_those_of_its_metadata(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_float32("general.sampling.temp", 0.25)
    writer.add_int32("general.sampling.top_k", 7)
    writer.add_float32("general.sampling.penalty_repeat", 1.5)
    path = written(writer, tmp_path / "m.gguf")
    assert {"temperature": 0.25, "top_k": 7, "repetition_penalty": 1.5} == own_sampling("m", "", path)


def test_the_catalog_comes_before_the_file(tmp_path: Path) -> None:
    entry = catalog()["smollm2-135m-instruct"]
    path = folder(tmp_path, {"temperature": 0.9, "top_k": 5})
    expected = {"temperature": 0.9, "top_k": 5} | dict(entry.sampling)
    assert expected == own_sampling("any", entry.digest, path) == own_sampling(entry.name, "", path)


def test_the_catalogs_values_are_values_of_prompts(tmp_path: Path) -> None:
    for entry in catalog().values():
        assert dict(entry.sampling) == own_sampling(entry.name, "", tmp_path)
