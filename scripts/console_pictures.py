"""Takes the pictures of the console for docs/images, from a running `edgectl serve`.

    python scripts/console_pictures.py URL DEVICE docs/images [MINUTES]

MINUTES: how long it asks first, so that there are curves to see (default 2).
Needs `playwright` (pip) and Debian's chromium.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

QUESTION = "What is the capital of Japan?"
SETTINGS = "generation:\n  max_tokens: 99\n  temperature: 0.2\n"
DESKTOP = {"width": 1100, "height": 640}
PHONE = {"width": 375, "height": 720}


def ask(base: str, device: str) -> None:
    """One prompt through the API."""
    body = {"model": device, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60}
    headers = {"Content-Type": "application/json"}
    urlopen(Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), headers), timeout=60).read()


def take(page: Any, base: str, device: str, folder: Path, ending: str) -> None:
    """Four pictures: fleet, chat, config, device."""
    page.goto(f"{base}/")
    page.wait_for_selector("td a")
    page.screenshot(path=folder / f"console-fleet{ending}.png")
    page.goto(f"{base}/#/chat/{device}")
    page.fill("textarea", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant .receipt")
    page.screenshot(path=folder / f"console-chat{ending}.png")
    page.goto(f"{base}/#/config/device%3A{device}")
    page.fill("textarea", SETTINGS)
    page.click("text=Show what changes")
    page.wait_for_selector("td code")
    page.screenshot(path=folder / f"console-config{ending}.png")
    page.goto(f"{base}/#/device/{device}")
    page.wait_for_selector("h2 >> text=The last hour")
    page.screenshot(path=folder / f"console-device{ending}.png")


def main() -> int:
    """Entry point; returns the exit code."""
    from playwright.sync_api import sync_playwright

    base, device, folder = sys.argv[1].rstrip("/"), sys.argv[2], Path(sys.argv[3])
    until = time.monotonic() + 60 * float(sys.argv[4] if len(sys.argv) > 4 else 2)
    program = shutil.which("chromium")
    if program is None:
        print("console_pictures: chromium is not installed; run: apt-get install chromium", file=sys.stderr)
        return 1
    while time.monotonic() < until:
        ask(base, device)
        time.sleep(3)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        take(browser.new_page(viewport=DESKTOP, color_scheme="light"), base, device, folder, "")
        take(browser.new_page(viewport=PHONE, color_scheme="dark"), base, device, folder, "-phone")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
