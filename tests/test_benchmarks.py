"""The benchmark in its shortest form: that it runs and tells all it measures. How fast anything is decides no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.benchmarks.figures import Figure, Ratio, Spread, compare
from tests.benchmarks.report import markdown, table
from tests.support.program import unmeasured

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.timeout(180)  # many new processes, and a slow machine may be busy

ROOT = Path(__file__).resolve().parent.parent
MEASURES = {
    "Borrow in a queue",
    "Claims load, from event to answer",
    "Cold start to the first row, CPU",
    "Cold start to the first row, wall",
    "Cold start: Python and asyncio, CPU",
    "Cold start: connect and first row, CPU",
    "Cold start: imports, CPU",
    "Cold start: settings, CPU",
    "Lone borrow, 1 ms away",
    "Modules at the first row",
    "Peak memory at the first row",
    "Refusal while the circuit is open",
    "Round trips of a warm borrow",
    "Round trips until a lone borrow returns",
    "SQLAlchemy ORM, one request",
    "Service load, p99 of a request",
    "Service load, throughput",
    "Warm borrow, 1 ms away",
    "Warm borrow, on loopback",
}


def test_a_short_run_tells_all_that_it_measures(tmp_path: Path) -> None:
    """One test, as the run takes long. A variable of the caller's own must not reach what it measures."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--output", str(tmp_path)],
        cwd=ROOT, env=unmeasured(LAMBDA_DATABASE_UNKNOWN="1"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "benchmark.json").read_text())
    figures = told["figures"]

    assert {"asyncdb_guard", "asyncpg", "Python", "PostgreSQL"} <= told["versions"].keys()
    assert told["command"] == "nox -s bench -- --quick"
    assert {figure["measure"] for figure in figures} >= MEASURES - {"Peak memory at the first row"}
    assert {figure["measure"] for figure in figures} <= MEASURES
    assert not [figure for figure in figures if figure["value"]["middle"] <= 0]
    assert all(figure["measure"] in done.stdout for figure in figures)
    assert len((tmp_path / "benchmark.md").read_text().splitlines()) == 2 + len(figures)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    trips = values(figures, "Round trips of a warm borrow")
    assert trips["asyncpg connection"] == trips["GuardedPool, reset never"] == 1
    assert trips["GuardedPool, reset always"] == trips["GuardedPool, proxy profile"] == 2
    trips = values(figures, "Round trips until a lone borrow returns")
    assert trips["asyncpg connection"] == trips["GuardedPool, reset never"] == trips["GuardedPool, reset always"] == 1
    assert trips["asyncpg.Pool"] == 2


def values(figures: list[dict[str, Any]], measure: str) -> dict[str, float]:
    """What each contestant has taken."""
    return {figure["name"]: figure["value"]["middle"] for figure in figures if figure["measure"] == measure}


def test_a_ratio_compares_samples_of_the_same_round() -> None:
    figures = compare("time", {"them": [1.0, 10.0, 2.0], "us": [2.0, 20.0, 4.0]}, "ms", bars={"us": {"them": 1.5}})
    twice = Ratio("them", Spread(2.0, 2.0, 2.0), 1.5)
    assert figures[1] == Figure("time", "us", Spread(4.0, 3.0, 12.0), "ms", (twice,))
    assert "| us | 4 ms (3 to 12.0) | 2.00 × them | ≤ 1.5 × them |" in markdown(figures)


def test_a_bar_may_be_the_least() -> None:
    figures = compare("pace", {"them": [10.0], "us": [5.0]}, "/s", bars={"us": {"them": 1.0}}, at_least=True)
    assert "| us | 5 /s | 0.50 × them | ≥ 1 × them |" in markdown(figures)
    console = Console(width=120)
    with console.capture() as printed:
        console.print(table(figures))
    assert "≥ 1 missed" in printed.get()
