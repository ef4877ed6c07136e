"""One run of the incident: the burst, the outage, the recovery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from examples.burst.fleet import Fleet
from examples.burst.measurements import Run
from examples.burst.scenario import BYSTANDER, PoolName, Scenario
from examples.burst.watch import AttemptCounter, observe, visit

SHOW_EVERY = 0.2
LAST_SECONDS = 60.0
"""Seconds after the last arrival: a sign-up takes at most three attempts of five seconds and two pauses."""


async def run_incident(
    server: Cluster,
    pool: PoolName,
    scenario: Scenario,
    environment: Mapping[str, str],
    show: Callable[[Run], None],
) -> Run:
    """Run the burst, the outage and the recovery. Nothing is left running afterwards."""
    run = Run(pool, scenario)
    start = time.monotonic()

    def clock() -> float:
        return time.monotonic() - start

    async def keep_showing() -> None:
        while True:
            run.now = clock()
            show(run)
            await asyncio.sleep(SHOW_EVERY)

    up = asyncio.Event()
    up.set()
    async with _meanwhile(keep_showing()), Fleet.started(pool, scenario, environment) as fleet:
        await fleet.wait_ready()
        start = time.monotonic()
        run.phase = "burst"
        async with asyncio.timeout(scenario.seconds + LAST_SECONDS), asyncio.TaskGroup() as together:
            together.create_task(fleet.collect(run.sign_ups))
            async with _meanwhile(
                observe(server, clock, up, run.samples),
                visit(server.url(user=BYSTANDER, sslmode="disable"), clock, up, run.visits),
            ):
                fleet.go()
                await asyncio.sleep(scenario.outage_after)
                await _stop_for(server, scenario.outage, clock, up, run)
                await asyncio.sleep(scenario.seconds - clock())
            run.phase = "last sign-ups"
    return run


async def _stop_for(server: Cluster, seconds: float, clock: Callable[[], float], up: asyncio.Event, run: Run) -> None:
    """Stop the server, count the connection attempts for `seconds`, and start it again."""
    gone = clock()
    run.phase = "database down"
    up.clear()
    await asyncio.to_thread(server.stop)
    async with AttemptCounter.at(server.host, server.port) as counter:
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            run.attempts = counter.attempts
    await asyncio.to_thread(server.restart)
    up.set()
    run.outage = (gone, clock())
    run.phase = "recovery"


@asynccontextmanager
async def _meanwhile(*jobs: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Run endless `jobs` during the block, and cancel them when it ends. An error in one ends the block, too."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()
