"""The real fleet's way through an outage: `python -m tests.benchmarks.fleet`. A bar that is missed is told, no more.

48 processes with all settings at their defaults, a real PostgreSQL that is killed and started again, and beside each
figure what the simulation says of the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.fleet import FleetModel, Gate, OpenPeriods, Result, Scenario, ServerModel, simulate
from asyncdb_guard.fleet.scenarios import Reach
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

OURS = ("LAMBDA_DATABASE_", "DATABASE_URL", "PG")
"""Variables of the caller's own that must not reach the fleet."""

_BEFORE = 2.0
"""Seconds for which all goes well first."""

_STEP, _WINDOW = 0.1, 0.5
"""Seconds: how finely the return is timed, and over how long a share of failures is taken."""


@dataclass(frozen=True)
class Effort:
    """How large, how long, how often."""

    processes: int
    outage: float
    """Seconds from the kill to the start."""
    after: float
    """Seconds to watch once the server is back."""
    runs: int
    rate: float = 2.0
    """Requests a second and process."""


FULL = Effort(processes=48, outage=4.0, after=12.0, runs=3)
QUICK = Effort(processes=6, outage=1.0, after=4.0, runs=1)


@dataclass(frozen=True)
class Figures:
    """What one run has shown. Seconds count from the server's return."""

    outage: float
    attempts: float
    """Failed connects of each environment."""
    during: float
    after: float
    served: float
    """Until at least 90 % of all requests are served, in each half a second."""
    last: float
    """The last request that failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small fleet, once: to see that it runs")
    effort = QUICK if parser.parse_args(arguments).quick else FULL
    console = Console(highlight=False)
    figures: list[Figures] = []
    with Cluster.start(16) as server:
        server.psql("CREATE ROLE fleet LOGIN")
        for number in range(effort.runs):
            figures.append(asyncio.run(outage(server, effort)))
            console.print(f"run {number + 1}: {figures[-1]}", soft_wrap=True)
    console.print(report(figures, simulated(effort, statistics.mean(one.outage for one in figures)), effort))
    return 0


async def outage(server: Cluster, effort: Effort) -> Figures:
    """Run the fleet through one outage."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    url = server.url(user="fleet", sslmode="disable")
    command = (sys.executable, "-m", "tests.benchmarks.fleet_environment", url, str(effort.rate))
    fleet = await asyncio.gather(
        *(
            asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment, limit=2**24)
            for _ in range(effort.processes)
        )
    )
    try:
        await asyncio.gather(*(_hear(process) for process in fleet))
        end = time.monotonic() + _BEFORE + effort.outage + effort.after
        for process in fleet:
            assert process.stdin is not None
            process.stdin.write(f"{end}\n".encode())
        await asyncio.sleep(_BEFORE)
        gone = time.monotonic()
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(gone + effort.outage - time.monotonic())
        await asyncio.to_thread(server.restart)
        back = time.monotonic()
        told = await asyncio.gather(*(_hear(process) for process in fleet))
        await asyncio.gather(*(process.wait() for process in fleet))
    finally:
        for process in fleet:
            if process.returncode is None:
                process.kill()
    requests = [(came, served) for one in told for came, served in one["requests"]]
    failed = sorted(came for came, served in requests if not served)
    return Figures(
        outage=back - gone,
        attempts=sum(one["failed_connects"] for one in told) / effort.processes,
        during=sum(came < back for came in failed),
        after=sum(came >= back for came in failed),
        served=_served_after(requests, back, 0.90),
        last=max(failed[-1] - back, 0.0) if failed else 0.0,
    )


async def _hear(process: Process) -> Any:
    """The next line of an environment."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("An environment has ended early; its error is above.")
    return json.loads(line)


def _served_after(requests: list[tuple[float, bool]], back: float, share: float) -> float:
    """Seconds from `back` on until no half a second has less than `share` of its requests served."""
    late = 0.0
    for step in range(round((max(came for came, _ in requests) - back) / _STEP)):
        begin = back + step * _STEP
        window = [served for came, served in requests if begin <= came < begin + _WINDOW]
        if window and window.count(False) > (1 - share) * len(window):
            late = (step + 1) * _STEP
    return late


def simulated(effort: Effort, seconds: float) -> Result:
    """What the simulation says of the same fleet."""
    settings = DatabaseSettings(url="postgresql://fleet@localhost/fleet")
    periods = OpenPeriods(settings.breaker_reset_timeout, settings.breaker_reset_timeout_max)
    fleet = FleetModel(effort.processes, effort.rate, Gate(periods, settings.breaker_fail_max))
    return simulate(fleet, ServerModel(2), Scenario("stopped", ((seconds, Reach.REFUSED),), watched=effort.after))


def report(figures: list[Figures], simulation: Result, effort: Effort) -> Table:
    """The medians, the bars, and the simulation."""

    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in figures))

    table = Table(title=f"{effort.processes} processes, {median('outage'):.1f} s without a server; medians")
    for heading in ("figure", "bar", "real", "simulated"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    ratio = statistics.median(one.after / max(one.during, 1) for one in figures)
    rows = [
        ("attempts each", 3.5, median("attempts"), simulation.attempts_per_environment),
        ("failed after ÷ during", 0.40, ratio, simulation.failed_after / simulation.failed_during),
        ("90 % served, s", 3.0, median("served"), simulation.served_after(0.90)),
        ("last failure, s", 5.2, median("last"), None),
        ("failed during", None, median("during"), simulation.failed_during),
        ("failed after", None, median("after"), simulation.failed_after),
    ]
    for name, bar, real, model in rows:
        missed = bar is not None and real > bar
        table.add_row(
            name,
            "" if bar is None else f"{bar:g}",
            f"{real:.2f}" + (" missed" if missed else ""),
            "" if model is None else f"{model:.2f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
