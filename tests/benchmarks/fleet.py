"""The real fleet's way through an outage: `python -m tests.benchmarks.fleet`. A bar that is missed is told, no more.

48 processes with all settings at their defaults, a real PostgreSQL that is killed and started again, and beside each
figure what the simulation says of the same. Then the same with a real Redis and the open periods that fit the fleet,
and with a Redis that is killed in mid-outage; both only where there is a redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdb_guard.fleet import FleetModel, Gate, OpenPeriods, Result, Scenario, ServerModel, open_periods, simulate
from asyncdb_guard.fleet.scenarios import Reach
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.support.redis import RedisServer

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
    variants: int = 3


FULL = Effort(processes=48, outage=4.0, after=12.0, runs=3)
QUICK = Effort(processes=6, outage=1.0, after=4.0, runs=1, variants=2)


@dataclass(frozen=True)
class Variant:
    """What the fleet is set to, and what is demanded of it."""

    name: str
    bars: tuple[float, float, float, float]
    """Attempts of each environment, failed after ÷ during, seconds until 90 % are served and to the last failure."""
    store: bool = False
    kill_store: bool = False
    """In mid-outage."""

    @property
    def variables(self) -> dict[str, str]:
        """The open periods that fit the fleet, where it has a store; else the defaults."""
        if not self.store:
            return {}
        periods = open_periods(FULL.processes, ServerModel(2).capacity)
        name = "LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT"
        return {f"{name}_MS": str(periods.first_ms), f"{name}_MAX_MS": str(periods.longest_ms)}


VARIANTS = (
    Variant("defaults", (3.5, 0.40, 3.0, 5.2)),
    Variant("with a store", (3.8, 0.10, 0.8, 0.8), store=True),
    Variant("store killed", (5.5, 0.40, 3.0, 5.2), store=True, kill_store=True),
)


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
    has_redis = shutil.which("redis-server") is not None
    with Cluster.start(16) as server:
        server.psql("CREATE ROLE fleet LOGIN")
        for variant in VARIANTS[: effort.variants if has_redis else 1]:
            figures: list[Figures] = []
            for number in range(effort.runs):
                figures.append(run(server, effort, variant))
                console.print(f"{variant.name}, run {number + 1}: {figures[-1]}", soft_wrap=True)
            seconds = statistics.mean(one.outage for one in figures)
            console.print(report(figures, simulated(effort, seconds, variant), effort, variant))
    if not has_redis:
        console.print("There is no redis-server, so no fleet with a store: apt-get install redis-server")
    return 0


def run(server: Cluster, effort: Effort, variant: Variant) -> Figures:
    """Run the fleet through one outage, with a Redis of its own where the variant has one."""
    if not variant.store:
        return asyncio.run(outage(server, effort, variant, None))
    with RedisServer() as redis:
        return asyncio.run(outage(server, effort, variant, redis))


async def outage(server: Cluster, effort: Effort, variant: Variant, redis: RedisServer | None) -> Figures:
    """Run the fleet through one outage."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= variant.variables
    if redis is not None:
        environment["LAMBDA_DATABASE_FLEET_URL"] = redis.url
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
        if redis is not None and variant.kill_store:
            await asyncio.sleep(effort.outage / 2)
            redis.kill()
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


def simulated(effort: Effort, seconds: float, variant: Variant) -> Result:
    """What the simulation says of the same fleet; of a killed store, that there was none."""
    periods = open_periods(FULL.processes, ServerModel(2).capacity) if variant.variables else OpenPeriods(2.0, 5.0)
    fleet = FleetModel(effort.processes, effort.rate, Gate(periods, store=variant.store and not variant.kill_store))
    return simulate(fleet, ServerModel(2), Scenario("stopped", ((seconds, Reach.REFUSED),), watched=effort.after))


def report(figures: list[Figures], simulation: Result, effort: Effort, variant: Variant) -> Table:
    """The medians, the bars, and the simulation."""

    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in figures))

    title = f"{variant.name}: {effort.processes} processes, {median('outage'):.1f} s without a server; medians"
    table = Table(title=title)
    attempts_bar, ratio_bar, served_bar, last_bar = variant.bars
    for heading in ("figure", "bar", "real", "simulated"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    ratio = statistics.median(one.after / max(one.during, 1) for one in figures)
    rows = [
        ("attempts each", attempts_bar, median("attempts"), simulation.attempts_per_environment),
        ("failed after ÷ during", ratio_bar, ratio, simulation.failed_after / simulation.failed_during),
        ("90 % served, s", served_bar, median("served"), simulation.served_after(0.90)),
        ("last failure, s", last_bar, median("last"), None),
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
