"""The console in a real Chromium: the table, a chat that streams and stops, a push with its trial, and its undoing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Broker, Client, Device

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
    page.wait_for_selector("tr:has-text('model.source'):has-text('\"good\"'):has-text('device:pi')")
    page.wait_for_selector("strong >> text=Prompts a minute")


def test_golden_prompts_are_shown_when_a_trial_has_ended_and_undo_brings_the_old_settings_back(page: Any) -> None:
    page.goto("/#/config/device%3Api")
    page.fill("textarea", "model: {source: good}\ngolden: [{prompt: 'say:Tokyo', expect: Tokyo}]")
    page.click("button.primary")
    page.wait_for_selector("td .mark >> text=applied", timeout=30_000)
    page.wait_for_selector("tr:has-text('say:Tokyo'):has-text('held')")
    page.goto("/#/device/pi")
    page.wait_for_selector("h3 >> text=Golden prompts")
    page.goto("/#/config/device%3Api")
    page.fill("textarea", "generation: {max_tokens: 7}")
    page.click("button.primary")
    page.wait_for_selector("text=Revision 2 of device:pi pushed")
    page.wait_for_selector("td .mark >> text=applied", timeout=30_000)
    page.click("text=Undo the last change")
    page.wait_for_selector("text=Revision 3 of device:pi pushed")
    page.goto("/#/device/pi")
    page.wait_for_selector("tr:has-text('model.source'):has-text('good')", timeout=30_000)


def test_a_chat_works_by_keyboard_alone_and_focus_stays_when_rows_change(page: Any) -> None:
    page.keyboard.press("Tab")
    assert "Skip to the content" == page.evaluate("document.activeElement.textContent")
    page.focus("td a")
    page.evaluate("document.querySelector('tbody tr').dataset.old = '1'")
    page.wait_for_selector("tbody tr:not([data-old])")  # the next telemetry
    assert "pi" == page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1 >> text=pi")
    page.focus("text=Push a config")
    page.wait_for_timeout(2500)  # more telemetry arrives and is drawn
    assert "Push a config" == page.evaluate("document.activeElement.textContent")


def test_a_phone_shows_every_page_without_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 375, "height": 720})
    for view in ("", "chat/pi", "config/fleet", "device/pi"):
        page.goto(f"/#/{view}")
        page.wait_for_selector("main h1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


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


def test_a_broker_that_goes_and_comes_is_shown(browser: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    broker = Broker(tmp_path).start()
    opened = browser.new_page(base_url=serve("--url", broker.url))
    opened.set_default_timeout(70_000)
    opened.goto("/")
    opened.wait_for_selector("#link >> text=Fleet test")
    broker.stop()
    opened.wait_for_selector("#link.bad >> text=No broker")
    broker.start()
    opened.wait_for_selector("#link:not(.bad) >> text=Fleet test")
    opened.close()
    broker.stop()
