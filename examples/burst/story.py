"""The story that the demo tells: a sign-up, a sign-in, and the incident twice, unguarded and guarded."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from asyncdb_guard.testing.lambda_runtime.endpoint import EnvironmentFailed
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from examples.burst import picture, report, triggers
from examples.burst.fleet import FleetError
from examples.burst.incident import run_incident
from examples.burst.interruption import Interruption
from examples.burst.measurements import Run, shown
from examples.burst.scenario import ASYNCPG_DEFAULT_POOL, FLEET, SCHEMA, PoolName, Scenario

QUICK = Scenario(processes=12, max_connections=40, seconds=9)
FOREIGN = ("LAMBDA_DATABASE_", "DATABASE_URL", "PG")
"""Variables of the caller that must not reach the fleet."""


def tell(arguments: Sequence[str] | None, interruption: Interruption) -> int:
    """Run the demo; return the exit code. Raises SystemExit for wrong arguments, KeyboardInterrupt if interrupted."""
    scenario, output = _parse(arguments)
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        plain, guarded = _acts(scenario, console, interruption)
    except (FleetError, triggers.TriggerRefusedError, EnvironmentFailed) as error:
        Console(stderr=True, highlight=False).print(f"\nThe demo failed. {error}", markup=False, soft_wrap=True)
        return 1
    picture.draw(plain, guarded, output)
    console.print()
    console.print(report.table(plain, guarded))
    console.print(report.meaning(plain, guarded))
    console.print(f"\nThe picture: {output.resolve()}", soft_wrap=True)
    console.print(f"That took {time.monotonic() - began:.0f} s. Nothing is left running.")
    return 0 if shown(plain, guarded) else 1


def _acts(scenario: Scenario, console: Console, interruption: Interruption) -> tuple[Run, Run]:
    console.rule("[bold]A database", align="left")
    with Cluster.start(max_connections=scenario.max_connections) as server:
        server.psql(SCHEMA)
        console.print(
            f"PostgreSQL {server.version} runs on this machine, in a temporary directory, "
            f"with max_connections = {scenario.max_connections}."
        )
        console.rule("[bold]Act one: somebody signs up and signs in", align="left")
        console.print(
            "Two AWS Lambda functions run in Lambda's own runtime client (awslambdaric) and get the events that "
            "Cognito sends. Each is a process with one GuardedPool."
        )
        triggers.act(server, console)
        console.rule("[bold]Act two: the incident", align="left")
        console.print(
            f"{scenario.processes} processes, like as many warm Lambda environments, sign people up: first a burst, "
            f"then a steady load. A bystander, another client of the database, keeps connecting, running a query "
            f"and disconnecting. After {scenario.outage_after:.0f} s the database goes down for "
            f"{scenario.outage:.0f} s. The first run uses asyncpg's pool, the second GuardedPool; nothing else differs."
        )
        plain, guarded = (_run(server, pool, scenario, console, interruption) for pool in ("plain", "guarded"))
    return plain, guarded


def _run(server: Cluster, pool: PoolName, scenario: Scenario, console: Console, interruption: Interruption) -> Run:
    wants = scenario.plain_demand if pool == "plain" else scenario.processes
    console.print(
        f"\n[bold]{report.NAMES[pool]}[/]: {scenario.processes} processes, which want {wants} sessions in total, "
        + (f"{ASYNCPG_DEFAULT_POOL} each (asyncpg's default)." if pool == "plain" else "one each.")
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment["DATABASE_URL"] = server.url(user=FLEET, sslmode="disable")
    try:
        with report.progress(console) as show:
            return interruption.run(run_incident(server, pool, scenario, environment, show))
    except* FleetError as group:
        failures = group
    # The processes all do the same and fail for the same reason, so the first error is enough.
    raise _first(failures)


def _first(failure: Exception) -> Exception:
    return _first(failure.exceptions[0]) if isinstance(failure, ExceptionGroup) else failure


def _parse(arguments: Sequence[str] | None) -> tuple[Scenario, Path]:
    default = Scenario()
    parser = argparse.ArgumentParser(prog="python -m examples.burst", description=__doc__)
    parser.add_argument("--processes", type=int, help=f"number of environments ({default.processes})")
    parser.add_argument("--max-connections", type=int, help=f"the server's max_connections ({default.max_connections})")
    parser.add_argument("--seconds", type=float, help=f"how long people arrive, in each run ({default.seconds:g})")
    parser.add_argument("--output", type=Path, default=Path("burst.png"), help="the picture (burst.png)")
    parser.add_argument("--quick", action="store_true", help="a small fleet and a short run")
    options = parser.parse_args(arguments)
    usual = QUICK if options.quick else default
    scenario = Scenario(
        processes=usual.processes if options.processes is None else options.processes,
        max_connections=usual.max_connections if options.max_connections is None else options.max_connections,
        seconds=usual.seconds if options.seconds is None else options.seconds,
    )
    if fault := scenario.fault():
        parser.error(fault)
    if not options.output.resolve().parent.is_dir():
        parser.error(f"--output {options.output}: its directory does not exist. Create it first.")
    return scenario, options.output
