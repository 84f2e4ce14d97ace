"""The console in a real Chromium: the table, a chat that streams and stops, a push with its trial, and its undoing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import Client, Device

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (scripts/test --all installs it)")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium (scripts/test --all installs it)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, serve: Callable[..., str], device: Callable[..., Device]) -> Iterator[Any]:
    device({"trial": {"probation": "500ms"}})
    opened = browser.new_page(base_url=serve(), viewport={"width": 1200, "height": 800})
    opened.set_default_timeout(15_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    opened.goto("/")
    opened.wait_for_selector("td a")
    yield opened
    opened.close()
    assert [] == errors


def test_the_table_shows_a_device_as_it_changes(page: Any, client: Client) -> None:
    assert "online" in page.inner_text("tbody tr")
    client.publish("edged/v1/test/device/other/status", b"safe", retain=True)
    page.wait_for_selector("tbody tr:has-text('other'):has-text('safe')")
    client.publish("edged/v1/test/device/other/status", b"", retain=True)
    page.wait_for_selector("tbody tr:has-text('other')", state="detached")


def test_a_chat_streams_shows_its_receipt_and_stops(page: Any, client: Client) -> None:
    page.goto("/#/chat/pi")
    page.fill("textarea", "say:hello there")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant .receipt:has-text('on pi')")
    assert "hello" in page.inner_text(".turn.assistant")
    page.fill("textarea", "say:begun wait:never")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant >> text=begun")
    page.click("button:has-text('Stop')")
    page.wait_for_selector(".receipt >> text=stopped")
    client.wait(lambda message: b'"cancelled"' in message.payload and b'"final":true' in message.payload)


def test_a_push_is_shown_followed_and_undone(page: Any) -> None:
    page.goto("/#/config/device%3Api")
    page.fill("textarea", "model: {source: good}")
    page.click("text=Show what changes")
    page.wait_for_selector("td >> text=model.source")
    page.click("button.primary")
    page.wait_for_selector("td .mark >> text=applied", timeout=30_000)
    page.fill("textarea", "model: {source: broken}")
    page.click("button.primary")
    page.wait_for_selector("td .mark >> text=rolled_back", timeout=30_000)
    page.goto("/#/device/pi")
    page.wait_for_selector("td >> text=rolled_back")


def test_what_a_device_says_is_text(page: Any, client: Client) -> None:
    health = {"state": HOSTILE, "model": {"name": HOSTILE}, "findings": [{"code": HOSTILE, "advice": HOSTILE}]}
    client.publish("edged/v1/test/device/evil/status", b"online", retain=True)
    client.publish("edged/v1/test/device/evil/health", health, retain=True)
    client.publish("edged/v1/test/device/evil/event", {"code": HOSTILE, "message": HOSTILE})
    page.wait_for_selector("tbody tr:has-text('evil')")
    page.goto("/#/device/evil")
    page.wait_for_selector("li >> text=onerror")
    assert [0, "evil – edged"] == [page.locator("img").count(), page.title()]
    for kind in ("status", "health"):
        client.publish(f"edged/v1/test/device/evil/{kind}", b"", retain=True)
