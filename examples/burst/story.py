"""The story that the demo tells: a sign-up, a sign-in, and the incident three times."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from asyncdb_guard.fleet import open_periods
from asyncdb_guard.testing.lambda_runtime.endpoint import EnvironmentFailed
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from examples.burst import picture, report, triggers
from examples.burst.fleet import FleetError
from examples.burst.incident import run_incident
from examples.burst.interruption import Interruption
from examples.burst.measurements import Run, shown
from examples.burst.scenario import (
    ASYNCPG_DEFAULT_POOL,
    FLEET,
    IDLE_MS,
    LOGINS_PER_SECOND,
    SCHEMA,
    PoolName,
    Scenario,
)
from examples.burst.store import StoreError, running_store

QUICK = Scenario(processes=12, max_connections=40, seconds=9)
FOREIGN = ("LAMBDA_DATABASE_", "DATABASE_URL", "PG")
"""Variables of the caller that must not reach the fleet."""


def tell(arguments: Sequence[str] | None, interruption: Interruption) -> int:
    """Run the demo; return the exit code. Raises SystemExit for wrong arguments, KeyboardInterrupt if interrupted."""
    scenario, output = _parse(arguments)
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        plain, guarded, fleet = _acts(scenario, console, interruption)
    except (FleetError, StoreError, triggers.TriggerRefusedError, EnvironmentFailed) as error:
        Console(stderr=True, highlight=False).print(f"\nThe demo failed. {error}", markup=False, soft_wrap=True)
        return 1
    picture.draw((plain, guarded, fleet), output)
    console.print()
    console.print(report.table((plain, guarded, fleet)))
    console.print(report.meaning(plain, guarded, fleet))
    console.print(f"\nThe picture: {output.resolve()}", soft_wrap=True)
    console.print(f"That took {time.monotonic() - began:.0f} s. Nothing is left running.")
    return 0 if shown(plain, guarded, fleet) else 1


def _acts(scenario: Scenario, console: Console, interruption: Interruption) -> tuple[Run, Run, Run]:
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
            " The third one has the same load, too many environments for the server, and what keeps them in bounds."
        )

        def run(pool: PoolName, **variables: str) -> Run:
            return _run(server, pool, scenario, variables, console, interruption)

        _introduce("plain", scenario, console, f"{ASYNCPG_DEFAULT_POOL} each (asyncpg's default)")
        plain = run("plain")
        _introduce("guarded", scenario, console, "one each")
        guarded = run("guarded")
        _introduce("fleet", scenario, console, f"one each, for {scenario.seats} seats")
        with running_store() as store:
            periods = open_periods(scenario.environments("fleet"), LOGINS_PER_SECOND)
            variables = {
                "LAMBDA_DATABASE_FLEET_URL": store.url,
                "LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MS": str(periods.first_ms),
                "LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MAX_MS": str(periods.longest_ms),
                "LAMBDA_DATABASE_IDLE_TIMEOUT_MS": str(IDLE_MS),
            }
            limit = f"ALTER ROLE {FLEET} CONNECTION LIMIT {scenario.role_limit}"
            server.psql(limit)
            console.print(
                f"{limit}; the open periods that `asyncdb-guard budget` prints, {periods.first_ms} and "
                f"{periods.longest_ms} ms; an idle timeout of {IDLE_MS} ms, so that those whom only the burst needed "
                f"make room; and a fleet store: {store.name}. Watch it from another terminal:"
            )
            console.print(
                f"  LAMBDA_DATABASE_URL='{server.url()}' LAMBDA_DATABASE_FLEET_URL={store.url} asyncdb-guard watch"
                f" --role {FLEET}",
                soft_wrap=True,
            )
            fleet = run("fleet", **variables)
    return plain, guarded, fleet


def _introduce(pool: PoolName, scenario: Scenario, console: Console, how: str) -> None:
    environments = scenario.environments(pool)
    wants = scenario.plain_demand if pool == "plain" else environments
    several = scenario.environments_per_process(pool)
    console.print(
        f"\n[bold]{report.NAMES[pool]}[/]: {environments} environments, "
        + (f"{several} in each process, " if several > 1 else "a process each, ")
        + f"which want {wants} sessions in total, {how}."
    )


def _run(
    server: Cluster,
    pool: PoolName,
    scenario: Scenario,
    variables: Mapping[str, str],
    console: Console,
    interruption: Interruption,
) -> Run:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment["DATABASE_URL"] = server.url(user=FLEET, sslmode="disable")
    environment |= variables
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
