"""What the pages name is there: files, figures, headings, suites, make targets."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from benchmarks.suites import suite_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGET = re.compile(r"""\]\(([^)\s]+)\)|src="([^"]+)\"""")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them: letters, digits and dashes, a repeated one with a number."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


@every_page
def test_links_and_figures_lead_somewhere(page):
    wrong = []
    for target in (first or second for first, second in TARGET.findall(FENCED.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.resolve())):
            wrong.append(target)
    assert not wrong, wrong


@every_page
def test_suites_that_are_named_exist(page):
    named = re.findall(r"seqbench (?:run|plan) ([a-z][a-z0-9-]*)(?![\w./-])", page.read_text())
    known = {*suite_names(), "my-suite"}  # `my-suite.yaml` stands for a reader's own
    assert not {name for name in named if name not in known}


@every_page
def test_make_targets_that_are_named_exist(page):
    text = page.read_text()
    named = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(named) <= targets
