"""Which chat template a model gets, and what becomes of one that cannot be rendered."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.core.chat_templates import BUILT_IN
from edged.core.prompt import Turn
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.template_choice import built_in, choose_template, fitting

CHAT = (Turn("system", "S"), Turn("user", "U"), Turn("assistant", "A"), Turn("user", "V"))


class Letters:
    """Each letter is a token."""

    def ids(self, text: str) -> list[int]:
        """Code points."""
        return [*map(ord, text)]


def codec(*control: str) -> TextCodec:
    return TextCodec(Letters(), [b""] * 256, {name: 200 + at for at, name in enumerate(control)}, None, frozenset(), {})


@pytest.mark.parametrize(
    ("control", "name"),
    [
        (("<|im_start|>", "<|im_end|>"), "chatml"),
        (("<|im_start|>", "<|im_sep|>", "<|im_end|>"), "phi4"),
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama3"),
        (("<start_of_turn>", "<end_of_turn>"), "gemma"),
        (("<|user|>", "<|assistant|>", "<|end|>"), "phi3"),
        (("<|user|>", "<|assistant|>"), "zephyr"),
        (("[INST]", "[/INST]"), "mistral"),
        (("<s>", "</s>"), ""),
    ],
)
def test_a_model_without_a_template_gets_the_one_of_its_control_tokens(control: tuple[str, ...], name: str) -> None:
    assert name == fitting(codec(*control))
    chosen = choose_template("auto", None, codec(*control))
    assert (name, "", bool(name)) == (chosen.name, chosen.problem, chosen.template is not None)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_template_renders_every_text_of_a_chat_in_order(name: str) -> None:
    texts = ("system's text", "user's text", "assistant's text", "last text")
    chat = [Turn(turn.role, text) for turn, text in zip(CHAT, texts, strict=True)]
    rendered = built_in(name, {"bos_token": "<s>", "eos_token": "</s>"}).render(chat)
    places = [rendered.index(text) for text in texts]
    assert places == sorted(places)
    assert [1] * 4 == [rendered.count(text) for text in texts]


def test_built_in_templates_are_written_as_expected() -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    ) == built_in("chatml", names).render(CHAT)
    assert (
        "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n"
    ) == built_in("gemma", names).render(CHAT)
    assert "[INST] S\n\nU[/INST] A</s>[INST] V[/INST]" == built_in("mistral", names).render(CHAT)
    assert "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]" == built_in("llama2", names).render(
        CHAT
    )
    assert (
        "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ) == built_in("llama3", names).render(CHAT[3:])
    assert "<|user|>\nV<|end|>\n<|assistant|>\n" == built_in("phi3", names).render(CHAT[3:])


def test_the_models_own_template_comes_first_and_the_config_before_it() -> None:
    chatml = codec("<|im_start|>", "<|im_end|>")
    assert "model" == choose_template("auto", "{{ messages[0].content }}", chatml).name
    assert "gemma" == choose_template("gemma", "{{ messages[0].content }}", chatml).name


def test_a_file_may_be_the_template(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("<{{ messages[0].content }}>")
    chosen = choose_template(str(path), "{{ 1 }}", codec())
    assert chosen.template is not None
    assert ("file", "<V>") == (chosen.name, chosen.template.render(CHAT[3:]))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if %}", "is broken"),
        ("{{ no_such_function() }}", "cannot be rendered ('no_such_function' is undefined)"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}", "exceeded a limit"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_a_problem_and_no_error(source: str, says: str) -> None:
    chosen = choose_template("auto", source, codec("<|im_start|>", "<|im_end|>"))
    assert (None, "") == (chosen.template, chosen.name)
    assert says in chosen.problem
    assert "only raw prompts are answered; set model.template" in chosen.problem


def test_a_template_that_refuses_a_chat_is_not_a_broken_one() -> None:
    assert "model" == choose_template("auto", "{{ raise_exception('only tools') }}", codec()).name


def test_a_file_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in choose_template(str(tmp_path / "no.jinja"), None, codec()).problem
