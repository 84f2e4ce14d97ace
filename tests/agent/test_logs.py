"""The log: one line an event, whatever it contains."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from edged.agent import logs


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["json", "console", "auto"])
@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\nlevel=error", "\x1b[31mred", "\u202eright to left", "\u2028", "\x00\x9b"]
)
def test_text_from_elsewhere_never_forges_a_line(form: str, hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form)
    logs.logger().info("config", reason=hostile)
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


def test_json_lines_are_objects_with_event_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.logger().warning("not connected", reason="x", retry_in_s=1.5)
    entry = json.loads(capsys.readouterr().err)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "not connected", "level": "warning", "reason": "x", "retry_in_s": 1.5}


def test_the_level_can_change_while_running(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logs.logger()
    logs.configure("warning", "json")
    logger.info("quiet")
    logs.configure("debug", "json")
    logger.debug("loud")
    assert "loud" in (said := capsys.readouterr().err)
    assert "quiet" not in said


def test_an_exception_stays_on_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        logs.logger().exception("a defect")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert json.loads(line)["event"] == "a defect"


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_not_known_is_left_out(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form)
    logs.logger().info("connected", mqtt="5", refused=None)
    line = capsys.readouterr().err
    assert "mqtt" in line
    assert "refused" not in line
