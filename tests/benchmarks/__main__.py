"""The benchmark: `python -m tests.benchmarks`. It measures; a bar that is missed is told, and fails nothing."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

import asyncdb_guard
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks import node_pg, picture, report
from tests.benchmarks.claims import loads
from tests.benchmarks.contestants import MAKERS, Maker
from tests.benchmarks.figures import Figure
from tests.benchmarks.lone import lone_borrowers
from tests.benchmarks.orm import orm_requests
from tests.benchmarks.processes import cold_starts
from tests.benchmarks.refusals import refusals
from tests.benchmarks.service import service_load
from tests.benchmarks.waiters import queues
from tests.benchmarks.warm import at_a_distance, on_loopback, round_trips

LIBRARIES = ("asyncpg", "aiobreaker", "pydantic-settings", "pydantic", "psycopg", "psycopg-pool", "sqlalchemy")
OURS = ("LAMBDA_DATABASE_", "DATABASE_URL", "PG")
"""Variables of the caller's own that must not reach what is measured."""


@dataclass(frozen=True)
class Effort:
    """How often each thing is done."""

    starts: int
    """Of a new process."""
    rounds: int
    """Of everything that is taken in turns. Many short ones, as a busy machine spoils a long one surely."""
    batch: int
    """Borrows in one turn."""
    load_starts: int
    """Of a service."""
    load_rounds: int
    """For each of these starts."""
    load: int
    """Requests of each task of a service in one turn."""
    queue_rounds: int
    queue: int
    """Borrowers at once."""


FULL = Effort(starts=31, rounds=151, batch=30, load_starts=7, load_rounds=13, load=5, queue_rounds=5, queue=10_000)
QUICK = Effort(starts=2, rounds=2, batch=10, load_starts=1, load_rounds=2, load=2, queue_rounds=1, queue=400)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds and no node-pg: to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), metavar="DIRECTORY",
                        help="for benchmark.json, benchmark.md and benchmark.png (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    for name in tuple(os.environ):
        if name.startswith(OURS):
            del os.environ[name]
    # a pipe has no width of its own
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    began = time.monotonic()
    about = _about(options.quick)
    figures = _measure(QUICK if options.quick else FULL, console, about)
    console.print(report.table(figures))
    console.print(f"{about['date']}, {', '.join(f'{name} {is_at}' for name, is_at in about['versions'].items())}")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "benchmark.json").write_text(report.as_json(figures, about), encoding="utf-8")
    (options.output / "benchmark.md").write_text(report.markdown(figures), encoding="utf-8")
    picture.draw(figures, about, options.output / "benchmark.png")
    console.print(f"Table, figures and picture: {options.output.resolve()}", soft_wrap=True)
    console.print(f"That took {time.monotonic() - began:.0f} s.")
    return 0


def _measure(effort: Effort, console: Console, about: dict[str, Any]) -> list[Figure]:
    # Before anything else starts, so that all of it stays on one CPU: where the kernel puts a client and its server
    # decides whether a round trip takes one time or two and a half.
    another = _another_cpu()
    about["cpu"] = _pin()
    node = nullcontext("the quick form fetches nothing") if effort is QUICK else node_pg.makers_or_reason()
    with Cluster.start(max_connections=60) as server, node as makers_or_reason:
        makers: dict[str, Maker] = {**MAKERS}
        if isinstance(makers_or_reason, str):
            console.print(f"Without node-pg: {makers_or_reason}.")
        else:
            makers |= makers_or_reason
            about["versions"] |= {"node-pg": node_pg.VERSION, "Node": node_pg.node_version()}
        about["versions"]["PostgreSQL"] = str(server.version)
        console.print("Cold starts ...")
        figures = cold_starts(server, rounds=effort.starts)
        gc.freeze()
        return figures + asyncio.run(_in_one_loop(server, makers, effort, console, another))


async def _in_one_loop(
    server: Cluster, makers: dict[str, Maker], effort: Effort, console: Console, another_cpu: int | None
) -> list[Figure]:
    rounds, batch = effort.rounds, effort.batch
    console.print("Warm borrows ...")
    figures = await round_trips(server, makers)
    figures += await on_loopback(server, makers, rounds=rounds, batch=batch)
    figures += await at_a_distance(server, makers, rounds=rounds, batch=5)
    figures += await lone_borrowers(server, rounds=rounds, batch=2)
    console.print("A service's load ...")
    figures += await service_load(
        server, starts=effort.load_starts, rounds=effort.load_rounds, requests=effort.load, cpu=another_cpu
    )
    figures += await orm_requests(server, rounds=rounds, batch=batch)
    console.print("Claims, refusals, queues ...")
    figures += await loads(server, rounds=rounds, batch=batch)
    figures += await refusals(rounds=rounds, batch=batch * 10)
    return figures + await queues(server, rounds=effort.queue_rounds, many=effort.queue)


def _pin() -> int | None:
    """Keep this process and all that it starts on one CPU; None where the system has no such call."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu


def _another_cpu() -> int | None:
    """A CPU that `_pin` does not take, if there is one."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) == 1:
        return None
    return min(os.sched_getaffinity(0))


def _about(quick: bool) -> dict[str, Any]:
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "nox -s bench" + (" -- --quick" if quick else ""),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"asyncdb_guard": asyncdb_guard.__version__, "Python": platform.python_version()} | libraries,
    }


if __name__ == "__main__":
    sys.exit(main())
