"""Tests that the code in the README and the docs runs as it is, and that their links have targets."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from dgmfast import models, nn
from dgmfast.recipes.registry import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def code(page: Path) -> str:
    """Returns the Python blocks of a page as one script in which every line keeps its number on the page."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, block.start(1))
        content = block[1].splitlines()
        lines[first : first + len(content)] = content
    return "\n".join(lines)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_CODE = [page for page in PAGES if code(page).strip()]


@pytest.fixture
def unregistered():
    """Removes the names that a page registers."""
    tables = models.MODELS, nn.OUTPUTS, RECIPES
    before = [dict(table) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        table.clear()
        table.update(names)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_code_runs(page, tmp_path, monkeypatch, unregistered):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "log_likelihood: a few samples dominate")
        exec(compile(code(page), name(page), "exec"), {"__name__": "page"})


def test_pages_with_code_are_among_them():
    assert {"README.md", "docs/quickstart.md", "docs/evaluation.md"} <= {name(page) for page in WITH_CODE}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{name(page)}: {link}"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
