"""Takes the pictures of the console for docs/images, from a running `edgectl serve`.

    python scripts/console_pictures.py URL DEVICE docs/images

Needs `playwright` (pip) and Debian's chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

QUESTION = "What is the capital of Japan?"


def take(page: Any, base: str, device: str, folder: Path) -> None:
    """Four pictures: fleet, device, chat, config."""
    page.goto(f"{base}/")
    page.wait_for_selector("td a")
    page.screenshot(path=folder / "console-fleet.png")
    page.goto(f"{base}/#/chat/{device}")
    page.fill("textarea", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant .receipt")
    page.screenshot(path=folder / "console-chat.png")
    page.goto(f"{base}/#/config/device%3A{device}")
    page.fill("textarea", "generation:\n  max_tokens: 99\n  temperature: 0.2\n")
    page.click("text=Show what changes")
    page.wait_for_selector("td code")
    page.screenshot(path=folder / "console-config.png")
    page.goto(f"{base}/#/device/{device}")
    page.wait_for_selector("h2 >> text=The last hour")
    page.screenshot(path=folder / "console-device.png")


def main() -> int:
    """Entry point; returns the exit code."""
    from playwright.sync_api import sync_playwright

    base, device, folder = sys.argv[1].rstrip("/"), sys.argv[2], Path(sys.argv[3])
    program = shutil.which("chromium")
    if program is None:
        print("console_pictures: chromium is not installed; run: apt-get install chromium", file=sys.stderr)
        return 1
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        take(browser.new_page(viewport={"width": 1200, "height": 640}, device_scale_factor=1), base, device, folder)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
