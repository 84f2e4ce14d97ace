"""The documentation keeps its shape: short lines, a short README, and links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README_LINES, DOCS_COLUMNS, SOURCE_COLUMNS, KERNEL_COLUMNS = 110, 100, 120, 110
SOURCES = {".py", ".sh", ".h", ".cpp", ".toml", ".yaml", ".service", ".js", ".mjs", ".ts", ""}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_PRAGMA = re.compile(r"  # (type: ignore|noqa).*$")
_FILE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|h|cpp|toml|service|md))`")
HISTORY = ("docs/benchmarks/", "docs/decisions/")  # what they name may be gone since


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def too_long(path: Path, columns: int) -> list[str]:
    lines = [_PRAGMA.sub("", line) for line in path.read_text("utf-8").splitlines()]
    return [f"{name(path)}:{number}" for number, line in enumerate(lines, 1) if len(line) > columns]


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub and most renderers make it."""
    plain = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text("utf-8"))
    return {anchor(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


def links(page: Path) -> Iterator[str]:
    """Every relative link of a page that is no code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text("utf-8")))
    for match in _LINK.finditer(text):
        link = match[1] or match[2]
        if not re.match(r"[a-z]+:", link):
            yield link


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git checkout: which files are sources is not known")
    return [ROOT / line for line in listed.stdout.decode().splitlines()]


def test_the_readme_is_for_the_first_ten_minutes() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= README_LINES


def test_the_readme_shows_a_working_example_at_once() -> None:
    assert any(line.startswith("```") for line in (ROOT / "README.md").read_text("utf-8").splitlines()[:15])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_a_page_is_longer_than_a_terminal_shows(page: Path) -> None:
    assert [] == too_long(page, DOCS_COLUMNS)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            broken.append(link)
    assert [] == broken


def test_every_page_of_the_docs_is_reached_from_the_index() -> None:
    start = ROOT / "docs" / "index.md"
    reached, waiting = set[Path](), [start]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert [] == [name(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in reached]


@pytest.mark.parametrize("page", [page for page in PAGES if not name(page).startswith(HISTORY)], ids=name)
def test_source_files_that_a_page_names_are_there(page: Path) -> None:
    """A page may leave folders out at the beginning: `engine/scheduler.py`, `scheduler.py`."""
    files = [f"/{name(path)}" for path in tracked()]
    named = {match[1] for match in _FILE.finditer(page.read_text("utf-8"))}
    assert [] == sorted(file for file in named if not any(path.endswith(f"/{file}") for path in files))


def test_no_source_line_is_too_long() -> None:
    found = []
    for path in tracked():
        if path.is_file() and path.suffix in SOURCES:
            try:
                kernel = path.suffix in {".h", ".cpp"}
                found += too_long(path, KERNEL_COLUMNS if kernel else SOURCE_COLUMNS)
            except UnicodeDecodeError:
                continue  # no text
    assert [] == found
