"""The reference pages and the code say the same: keys, defaults, options, codes, examples."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from edged.commands import edgectl
from edged.commands import main as edged_main
from edged.config.file import parse
from edged.config.keys import known_keys
from edged.config.schema import build
from edged.core.golden import GoldenResult
from edged.core.health import Finding, health_of
from edged.core.prompt import ChosenLogprob, Embedding, Failure, Final, ModelInfo, Reason, TokenLogprob, ToolCall, Usage
from edged.core.reading import Reading
from edged.ctl import main as edgectl_main
from edged.device.rules import RULES
from edged.models.formats.packed import FORMAT, Manifest
from edged.models.formats.shape import Shape
from edged.models.formats.tiles import Kind
from edged.wire import documents, formats, layers, model_push, prompts, replies, rollout_schedule, signatures
from tests.support import ROOT

REFERENCE = ROOT / "docs" / "reference"
EXAMPLE = re.compile(r"^```json ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"`([^`\n]+)`")


def page(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


def words(text: str) -> set[str]:
    """Everything between back quotes."""
    return set(WORD.findall(text))


def section(text: str, title: str) -> str:
    """The lines below a heading, up to the next of its level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {title}"
    level = len(found[1])
    rest = text[found.start(2) :]
    end = re.search(rf"^#{{1,{level}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def examples(kind: str) -> list[Any]:
    """The JSON values of the examples of a kind; one example may hold several."""
    return [value for name, text in EXAMPLE.findall(page("mqtt.md")) if name == kind for value in values_of(text)]


def values_of(text: str) -> Iterator[Any]:
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield value
        rest = rest[end:].strip()


def leaves(document: Any, at: str = "") -> Iterator[str]:
    """The dotted path of every key that holds no object; `[]` represents a list's entries."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from leaves(value, f"{at}.{key}" if at else key)
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        yield from leaves(document[0], f"{at}[]")
    else:
        yield at


def source_calls(*folders: str) -> Iterator[tuple[str, ast.Call]]:
    """The name and the node of every call in these folders of the package."""
    for folder in folders:
        for path in sorted((ROOT / "edged" / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    yield name, node


def texts_at(position: int, name: str, *folders: str) -> set[str]:
    """What the calls of `name` give as the argument at `position`, where that is a plain text."""
    found = set()
    for called, node in source_calls(*folders):
        if called == name and len(node.args) > position:
            argument = node.args[position]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


def assigned(name: str, *folders: str) -> set[str]:
    """The plain texts that are assigned to this name in these folders of the package."""
    found = set()
    for folder in folders:
        for path in sorted((ROOT / "edged" / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Assign) and [name] == [getattr(target, "id", "") for target in node.targets]:
                    value = node.value.value if isinstance(node.value, ast.Constant) else None
                    found |= {value} if isinstance(value, str) else set()
    return found


# ---- every page -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=lambda path: path.name)
def test_no_line_is_longer_than_100_columns(path: Path) -> None:
    assert [] == [line for line in path.read_text("utf-8").splitlines() if len(line) > 100]


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "docs" / "reference").glob("*.md"), *(ROOT / "docs" / "tutorial").glob("write-*.md")]),
    ids=lambda path: path.name,
)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert [] == broken


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- configuration.md -----------------------------------------------------------------------------------------------


def documented_settings() -> dict[str, str]:
    """Key → default as configuration.md has them."""
    table = rows(section(page("configuration.md"), "Keys").split("### ")[0])[1:]
    return {key: cells[1] for cells in table for key in WORD.findall(cells[0])}


def test_every_setting_is_in_configuration_and_no_other() -> None:
    assert set(known_keys()) == set(documented_settings())


def test_defaults_are_those_of_the_code() -> None:
    settings = build({})
    actual, expected = {}, {}
    for key, cell in documented_settings().items():
        section_name = key.partition(".")[0]
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name, None)
        if not cell.startswith("`"):  # in words: there is no default value
            actual[key], expected[key] = value, None
        elif section_name != "golden":
            actual[key], expected[key] = value, known_keys()[key](key, yaml.safe_load(cell.strip("`")))
    assert expected == actual


@pytest.mark.parametrize("path", ["reference/configuration.md", "how-to/change-the-model.md"])
def test_every_example_of_settings_is_accepted(path: str) -> None:
    found = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / path).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    for text in found:
        parse(text, path)


# ---- cli.md ---------------------------------------------------------------------------------------------------------


def commands_of(parser: argparse.ArgumentParser, at: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with the parser of its own words."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield at, parser
    for action in inner:
        for name, below in action.choices.items():
            yield from commands_of(below, f"{at} {name}")


def edgectl_parser() -> argparse.ArgumentParser:
    return edgectl_main.parser(edgectl.MORE)


@pytest.mark.parametrize(("name", "parser"), [("edged", edged_main.parser), ("edgectl", edgectl_parser)])
def test_every_command_and_option_is_in_cli(name: str, parser: Callable[[], argparse.ArgumentParser]) -> None:
    text = page("cli.md")
    shared = section(text, "edgectl").split("### ")[0]
    missing = []
    for command, inner in commands_of(parser(), name):
        top = " ".join(command.split()[:2])
        title = "Completion" if top.endswith("completion") else top
        place = section(text, title)
        if command not in place:
            missing.append(command)
        for action in inner._actions:
            options = [option for option in action.option_strings if option not in {"-h", "--help"}]
            missing += [f"{command} {o}" for o in options if o not in place + (shared if name == "edgectl" else "")]
            missing += [f"{command} {c}" for c in action.choices or () if str(c) not in place]
    assert [] == missing


def test_cli_names_no_option_that_the_parsers_do_not_know() -> None:
    known = {"--help", "--version"}
    for name, parser in (("edged", edged_main.parser), ("edgectl", edgectl_parser)):
        for _, inner in commands_of(parser(), name):
            known |= {option for action in inner._actions for option in action.option_strings}
    assert set() == set(re.findall(r"--[a-z][a-z-]+", page("cli.md"))) - known


def test_reserved_commands_are_in_cli() -> None:
    assert {" ".join(name) for name in edgectl_main.RESERVED} <= words(page("cli.md"))


# ---- mqtt.md: examples ----------------------------------------------------------------------------------------------


def test_every_example_is_json_of_a_known_kind() -> None:
    kinds = {name for name, text in EXAMPLE.findall(page("mqtt.md")) if list(values_of(text))}
    known = {"prompt", "reply", "cancel", "health", "telemetry", "event", "layer", "reported", "history", "model"}
    assert known | {"schedule"} == kinds


def test_every_example_of_a_prompt_is_accepted() -> None:
    for example in examples("prompt"):
        parsed = prompts.parse_prompt(json.dumps(example).encode(), None, 64_000, lambda: "made-up")
        assert example["id"] == parsed.id


def test_every_example_of_a_cancel_and_of_a_layer_is_accepted() -> None:
    assert [{"id"}, {"all"}] == [set(cancel) for cancel in examples("cancel")]
    for cancel in examples("cancel"):
        prompts.parse_cancel(json.dumps(cancel).encode())
    for layer in examples("layer"):
        assert layer["revision"] == layers.parse_layer(json.dumps(layer).encode()).revision


def test_every_example_of_a_schedule_is_read_and_has_the_keys_that_are_written() -> None:
    (example,) = examples("schedule")
    read = rollout_schedule.parse(json.dumps(example).encode())
    assert example == json.loads(rollout_schedule.schedule(read))


def test_every_example_about_a_model_is_accepted() -> None:
    offer, ranges, state = examples("model")
    assert offer["size"] == model_push.parse_offer(json.dumps(offer).encode()).size
    assert ranges["ranges"] == [list(pair) for pair in model_push.parse_ranges(json.dumps(ranges).encode())]
    assert state == json.loads(model_push.state(model_push.State(**state)))


def test_every_key_of_an_offer_and_every_state_of_a_model_is_in_the_tables_and_no_other() -> None:
    tables = rows(section(page("mqtt.md"), "Models over the broker"))
    first = [cells[0] for cells in tables]
    offer, states = first.index("key of an offer"), first.index("state")
    keys = {word for cell in first[offer + 1 : states] for word in WORD.findall(cell)}
    assert set(model_push._OFFER_KEYS) == keys
    assert set(get_args(model_push.StateName)) == {word for cell in first[states + 1 :] for word in WORD.findall(cell)}


def test_every_signature_of_an_example_is_that_of_the_key_and_topic_beside_it() -> None:
    signed = [layer for layer in examples("layer") if "signature" in layer]
    text = section(page("mqtt.md"), "Signatures")
    public = next(word for word in WORD.findall(text) if word.endswith("="))
    assert 2 == len(signed)
    assert all(signatures.is_signed_by(public, "edged/v1/home/device/pi/config", layer) for layer in signed)


def test_examples_have_no_key_that_the_tables_lack() -> None:
    text = page("mqtt.md")
    known = words(text)
    for kind, title in (("reply", "Replies"), ("health", "Health"), ("event", "Event"), ("reported", "Config layers")):
        for example in examples(kind):
            missing = [key for key in leaves(example) if not documented(key, words(section(text, title)) | known)]
            assert [] == missing, kind


def documented(key: str, known: set[str]) -> bool:
    """Whether a key, or an object that it lies in, is in a table."""
    while key:
        if key in known:
            return True
        key = key.rpartition(".")[0]
    return False


# ---- mqtt.md: keys --------------------------------------------------------------------------------------------------


def test_every_key_of_a_prompt_is_in_the_table() -> None:
    keys = {word for cells in rows(section(page("mqtt.md"), "Prompt")) for word in WORD.findall(cells[0])}
    assert set() == set(prompts._PROMPT_KEYS) - keys


def test_every_keyword_of_a_schema_is_in_the_table_and_no_other() -> None:
    table = rows(section(page("mqtt.md"), "Format"))
    first = next(i for i, cells in enumerate(table) if cells[0] == "schema keyword")
    assert set(formats._KNOWN) == {word for cells in table[first + 1 :] for word in WORD.findall(cells[1])}


def full_final() -> Final:
    """What an engine may give beside the text."""
    logprobs = (ChosenLogprob("a", -0.1, (TokenLogprob("a", -0.1),)),)
    calls = (ToolCall("a", "f", "{}"),)
    return Final(
        "stop",
        "",
        Usage(),
        1,
        0.0,
        0.0,
        logprobs=logprobs,
        tool_calls=calls,
        reasoning="why",
        embedding=Embedding(((0.5,),), "mean"),
    )


INFO = ModelInfo("m", "sha256:0", "llama", "q4_1", "native", 64, 4, 0, fallback="why")
QUEUE = documents.Queue(0, 0, 1, 0, 0, 0, 0)
FRAME = documents.Frame(0.0, "boot", None)


def test_every_key_of_a_reply_is_in_the_tables() -> None:
    receipt = replies.Receipt("pi", "m", "sha256:0", "q4_1", "native", {}, 1, None)
    timing = replies.Timing(0.0, None, 0.0, None)
    written = [
        replies.answer("a", "failed", "", 0.0, Usage(), timing, receipt, Failure("engine", "why"), full_final()),
        replies.refusal("a", "busy", "queue_full", "why", 0.0, retry_after_ms=1),
        replies.accepted("a", 1, None),
        replies.chunk("a", 0, 0, "", "why", reasoning_at=0),
        replies.conflict("a"),
        replies.command_done("a", "done", 0.0, 0.0, "H4sI"),
    ]
    known = words(section(page("mqtt.md"), "Replies"))
    assert [] == [key for document in written for key in leaves(json.loads(document)) if key not in known]


def test_every_key_of_health_is_in_the_table() -> None:
    model = documents.ModelState("safe", "m", INFO, "loading", "missing", "why", 1)
    health = health_of([Finding("throttled", 0.0, None, None, "advice")])
    written = documents.health(FRAME, health, "0.1.0", documents.LinkState("5", 1), model, QUEUE)
    known = words(section(page("mqtt.md"), "Health"))
    assert [] == [key for key in leaves(json.loads(written)) if key not in known]


def test_every_key_of_telemetry_is_in_the_table() -> None:
    known = words(section(page("telemetry.md"), "Keys"))
    written = documents.telemetry(FRAME, full_reading(), documents.Speed(None, None), QUEUE)
    assert [] == [key for key in leaves(json.loads(written)) if not documented(key, known)]


def full_reading() -> Reading:
    """A reading in which everything is measured."""
    numbers: dict[str, Any] = {
        "cpu": {"percent": 1.0, "clock_mhz": 1, "load": [1, 1, 1], "count": 1},
        "memory": dict.fromkeys(
            ("total_bytes", "available_bytes", "used_bytes", "swap_total_bytes", "swap_used_bytes"), 1
        ),
        "pressure": {name: {"some": 1.0, "full": 1.0} for name in ("cpu", "memory", "io")},
        "throttle": {"now": ["throttled"], "since_boot": []},
        "disk": {"total_bytes": 1, "free_bytes": 1},
        "network": {"interface": "eth0", "in_bytes": 1, "out_bytes": 1},
        "agent": {"rss_bytes": 1, "pss_bytes": 1},
        "worker": {"rss_bytes": 1, "pss_bytes": 1},
        "gpu": {"load_percent": 1.0},
    }
    rest = {"at": 1.0, "uptime_s": 1.0, "zones": {"cpu": 1.0}, "broken": ["a"], "stuck": ["b"], "temperature_c": 1.0}
    return msgspec.convert({**numbers, **rest, "throttled": True}, Reading)


def test_every_key_of_the_reported_state_and_of_a_layer_is_in_the_tables() -> None:
    result = GoldenResult("p", "a", True, 1.0, 2.0)
    written = layers.reported(layers.Reported("trial", None, None, "", {}, golden=(result,)), 0.0)
    decided = layers.history([layers.Decided("applied", None, None, "", 0.0, settings="{}")], 0.0)
    text = section(page("mqtt.md"), "Config layers")
    keys = {*json.loads(written), *leaves(json.loads(written)["golden"], "golden"), *layers._LAYER_KEYS}
    assert keys <= words(text)
    assert {*json.loads(decided)["decisions"][0]} <= {word.rpartition(".")[2] for word in words(text)}
    assert set(get_args(layers.Phase)) <= words(text)


# ---- mqtt.md and telemetry.md: words --------------------------------------------------------------------------------


def test_every_reason_is_in_the_table_and_no_other() -> None:
    table = rows(section(page("mqtt.md"), "Reasons"))[1:]
    assert set(get_args(Reason)) == {cells[0].strip("`") for cells in table}


def error_codes() -> set[str]:
    found = texts_at(1, "PromptRefused", ".") | texts_at(0, "Failure", ".")
    found |= texts_at(2, "Refused", ".") | texts_at(2, "refusal", ".") | texts_at(2, "_end_with_error", "agent")
    found |= texts_at(1, "_Refusal", "agent") | texts_at(5, "Refuse", "agent")
    found |= texts_at(1, "CommandRefused", "agent")
    return found - {"expired"}  # a reason without an error


def test_every_error_code_of_the_source_is_in_the_table_and_no_other() -> None:
    table = rows(section(page("mqtt.md"), "Error codes"))[1:]
    assert error_codes() == {code for cells in table for code in WORD.findall(cells[0])}


def test_every_event_code_of_the_source_is_in_the_table() -> None:
    table = rows(section(page("mqtt.md"), "Event"))[1:]
    known = {code for cells in table for code in WORD.findall(cells[0])}
    plain = texts_at(0, "event", "agent") | texts_at(0, "_report", "agent")
    built = {f"finding_{kind}" for kind in ("began", "ended", "worse", "better")}
    built |= {"config_applied", "config_rejected", "config_rolled_back", "config_waiting"}
    assert plain | built == known


def model_error_codes() -> set[str]:
    raised = texts_at(0, "ModelError", "models", "engine", "worker") | texts_at(0, "NotLoaded", "worker")
    return raised - {"failed"} | texts_at(0, "Trouble", "agent") | texts_at(0, "ModelFailure", "agent")


def test_every_code_of_a_missing_model_is_in_the_tables() -> None:
    codes = model_error_codes()
    assert codes <= words(section(page("mqtt.md"), "Findings"))
    assert {f"model_{code}" for code in codes} <= words(section(page("telemetry.md"), "Findings"))


def test_every_finding_of_the_source_is_in_both_pages() -> None:
    found = {rule.code for rule in RULES} | texts_at(0, "Finding", "device", "agent") | assigned("code", "agent")
    assert {"publish_refused", "journal", "clock_jumped"} <= found
    for name in ("mqtt.md", "telemetry.md"):
        assert set() == found - words(section(page(name), "Findings")), name


def test_every_status_word_is_in_the_table() -> None:
    table = rows(section(page("mqtt.md"), "Status"))[1:]
    said = texts_at(0, "set_status", "agent") | {"starting", "online", "safe"}  # the model's states are words, too
    assert said == {cells[0].strip("`") for cells in table}


# ---- packed-format.md -----------------------------------------------------------------------------------------------


def test_kinds_and_keys_of_the_packed_format_are_in_the_tables() -> None:
    text = page("packed-format.md")
    kinds = {cells[0].strip("`"): cells[1] for cells in rows(section(text, "Kinds"))[1:]}
    assert {kind.name.lower(): str(kind.value) for kind in Kind} == kinds
    known = words(section(text, "manifest.json"))
    assert {"format", *Manifest.__dataclass_fields__, *Shape.__dataclass_fields__} <= known
    assert f"The format's number is {FORMAT}." in text
