"""The page "Testing": the files on it are a suite, and it passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.test_plugin import INI, ROOT, SESSION_LOOP, Suite

PAGE = ROOT / "docs" / "testing.md"


def test_the_files_of_the_page_are_a_suite_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(files) == PAGE.read_text(encoding="utf-8").count("```python")
    suite = Suite(tmp_path)
    # The function's process looks in its own folder only, and would count these files as others.
    (tmp_path / "asyncdb_guard").symlink_to(ROOT / "asyncdb_guard")
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)
    for name, source in files:
        (tmp_path / name).write_text(source)
    (tmp_path / "pytest.ini").write_text(f"{INI}pythonpath = .\n")
    status, said = suite.run(*SESSION_LOOP)
    assert status == 0, said
    assert f"{sum(source.count('def test_') for _, source in files)} passed" in said


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
