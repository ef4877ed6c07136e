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


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What it printed, and where its files are. A variable of the caller's own must not reach what it measures."""
    directory = tmp_path_factory.mktemp("benchmarks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--output", str(directory)],
        cwd=ROOT, env=unmeasured(LAMBDA_DATABASE_UNKNOWN="1"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, directory


@pytest.fixture(scope="module")
def told(output: tuple[str, Path]) -> dict[str, Any]:
    return json.loads((output[1] / "benchmark.json").read_text())


def test_it_measures_all_there_is_to_measure(told: dict[str, Any]) -> None:
    assert {figure["measure"] for figure in told["figures"]} >= MEASURES - {"Peak memory at the first row"}
    assert {figure["measure"] for figure in told["figures"]} <= MEASURES
    assert all(figure["value"]["middle"] > 0 for figure in told["figures"])


def test_a_warm_borrow_takes_the_round_trips_that_it_must(told: dict[str, Any]) -> None:
    trips = {
        figure["name"]: figure["value"]["middle"]
        for figure in told["figures"]
        if figure["measure"] == "Round trips of a warm borrow"
    }
    assert trips["asyncpg connection"] == trips["GuardedPool, reset never"] == 1
    assert trips["GuardedPool, reset always"] == trips["GuardedPool, proxy profile"] == 2


def test_a_lone_borrow_waits_for_no_reset(told: dict[str, Any]) -> None:
    trips = {
        figure["name"]: figure["value"]["middle"]
        for figure in told["figures"]
        if figure["measure"] == "Round trips until a lone borrow returns"
    }
    assert trips["asyncpg connection"] == trips["GuardedPool, reset never"] == trips["GuardedPool, reset always"] == 1
    assert trips["asyncpg.Pool"] == 2


def test_it_names_the_versions_and_the_command(told: dict[str, Any]) -> None:
    assert {"asyncdb_guard", "asyncpg", "Python", "PostgreSQL"} <= told["versions"].keys()
    assert told["command"] == "nox -s bench -- --quick"


def test_it_prints_a_table_and_writes_it_and_a_picture(output: tuple[str, Path], told: dict[str, Any]) -> None:
    printed, directory = output
    assert all(figure["measure"] in printed for figure in told["figures"])
    assert len((directory / "benchmark.md").read_text().splitlines()) == 2 + len(told["figures"])
    assert (directory / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


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
