"""The files that the pages tell the reader to save: suites that pass, and programs that print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import Block, take, take_one
from tests.testing.test_plugin import INI, ROOT, SESSION_LOOP, Suite

PAGE = ROOT / "docs" / "testing.md"

SUITE = take("docs/testing.md")
README = take_one("README.md", "In a test suite")
TUTORIAL = take("docs/tutorials/test_suite.md")
INI_FILE = take("docs/tutorials/test_suite.md", language="ini")
PROGRAMS = {name: take(f"docs/tutorials/{name}.md") for name in ("lambda", "service")}
PRINTED = {
    "lambda": take_one("docs/tutorials/lambda.md", "Run them", language="text"),
    "service": take_one("docs/tutorials/service.md", "Run it", language="text"),
}


def save(files: list[Block], folder: Path) -> None:
    """Save the files under the names that they begin with."""
    for block in files:
        assert block.file, f"{block} does not begin with the name of its file"
        (folder / block.file).write_text(block.text)


def number_of_tests(files: list[Block]) -> int:
    return sum(block.text.count("def test_") for block in files)


@pytest.fixture(autouse=True)
def without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers' processes look in their own folder only, and would count these files as others."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


def test_the_readmes_test_passes(pytester: pytest.Pytester) -> None:
    suite = Suite(pytester)
    (suite.folder / "test_it.py").write_text(README.text)
    status, said = suite.run()
    assert status == 0, said
    assert "1 passed" in said


def test_the_tutorials_suite_passes(pytester: pytest.Pytester) -> None:
    save([*TUTORIAL, *INI_FILE], pytester.path)
    status, said = Suite(pytester, ini=None).run()
    assert status == 0, said
    assert f"{number_of_tests(TUTORIAL)} passed" in said


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_tutorials_program_prints_what_its_page_shows(name: str, tmp_path: Path) -> None:
    save(PROGRAMS[name], tmp_path)
    (tmp_path / "asyncdb_guard").symlink_to(ROOT / "asyncdb_guard")
    done = subprocess.run(
        [sys.executable, "try_it.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.stderr) == (PRINTED[name].text, "")


def test_the_files_of_the_page_are_a_suite_that_passes(pytester: pytest.Pytester) -> None:
    suite = Suite(pytester, f"{INI}pythonpath = .\n")
    (suite.folder / "asyncdb_guard").symlink_to(ROOT / "asyncdb_guard")
    save(SUITE, suite.folder)
    status, said = suite.run_alone(*SESSION_LOOP)
    assert status == 0, said
    assert f"{number_of_tests(SUITE)} passed" in said


def test_the_page_has_all_fixtures_and_all_they_have(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:asyncdb_guard", "-p", "asyncdb_guard.testing.plugin", "--fixtures"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    ours = listed.partition("fixtures defined from asyncdb_guard.testing.plugin")[2].partition("\n--")[0]
    names = re.findall(r"^(\w+)(?: \[\w+ scope\])? --", ours, re.MULTILINE)
    assert len(names) == 10
    assert [name for name in names if f"| `{name}` |" not in page] == []
