"""The prose and the code say the same."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from asyncdb_guard import PoolStats, errors, events
from tests.support import settings_doc

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]


def test_the_settings_page_is_generated_from_the_settings() -> None:
    assert settings_doc.PAGE.read_text(encoding="utf-8") == settings_doc.page(), (
        "docs/settings.md is out of date: run `python -m tests.support.settings_doc`"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them, and those of its own."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_to_a_heading_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [
        f"{file}#{anchor}" for file, anchor in links if anchor not in anchors(page.parent / file if file else page)
    ] == []


def rows(page: str, line: str) -> list[list[str]]:
    """The cells of the first table below a heading, or of the table with this head."""
    _, found, text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{line}\n")
    assert found, f"{page} has no line {line!r}"
    if line.startswith("|"):
        text = f"{line}\n{text}"
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines, f"{page} has no table below {line!r}"
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines[0].splitlines()[2:]]


def test_a_package_index_shows_no_link_that_leads_nowhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(change["pattern"], change["replacement"], shown)
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    named = re.findall(r" \(`([^`]+)`\)", shown)
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in named if not any(f"/{name}".startswith(part) for part in included)] == []


FAULTS = rows("docs/reliability.md", "## Fault by fault")
TESTS = {
    f"{path.name}::{node.name}"
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda cells: cells[0])
def test_each_fault_names_tests_that_exist(fault: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", fault[-1])
    assert named, f"{fault[0]!r} names no test"
    assert [name for name in named if name not in TESTS] == []


def test_each_event_is_in_the_table_of_events() -> None:
    told = {
        tuple(re.findall(r"`(\w+)`", f"{name} {kind}")) + tuple(re.findall(r"`(\w+)`:", field))
        for name, kind, field, _ in rows("docs/observing.md", "## Events")
    }
    public = [kind for name, kind in vars(events).items() if isinstance(kind, type) and not name.startswith("_")]
    kinds = [kind for kind in public if issubclass(kind, events.Event) and kind is not events.Event]
    assert told == {(kind.name, kind.__name__, *(field.name for field in dataclasses.fields(kind))) for kind in kinds}


def test_each_reason_is_explained() -> None:
    explained = [cells[0].strip("`") for cells in rows("docs/observing.md", "| `reason` | means |")]
    told: set[str] = set()
    for _, kind, field, _ in rows("docs/observing.md", "## Events"):
        reasons = re.findall(r"`(\w+)`", field.partition("`reason`:")[2])
        documented = str(getattr(events, kind.strip("`")).__doc__).partition("`reason`:")[2]
        assert sorted(reasons) == sorted(re.findall(r"`(\w+)`", documented)), kind
        told.update(reasons)
    assert sorted(explained) == sorted(told)


def test_each_count_is_in_the_table_of_counts() -> None:
    told = [key for cells in rows("docs/observing.md", "## Counts") for key in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(told) == sorted(PoolStats.__required_keys__)


def test_each_error_is_in_the_readme() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type)]
    assert [name for name in kinds if not re.search(rf"\b{name}\b", page)] == []


def test_the_navigation_shows_each_page_under_its_own_title() -> None:
    navigation = (ROOT / "docs/site/mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert re.findall(r"(?m)^ *- ([^:\n]+): (\S+\.md)$", navigation) == [("Start", "index.md")]
