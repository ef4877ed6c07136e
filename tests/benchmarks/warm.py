"""One warm borrow with one statement: its round trips, its time on loopback, and its time on a line with a delay."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from contextlib import AsyncExitStack

from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.benchmarks.contestants import ALWAYS, ASYNCPG_POOL, BARE, NEVER, NODE_PG, Contestant, Maker
from tests.benchmarks.figures import Figure, Samples, Spread, compare
from tests.benchmarks.slow_line import SlowLine

ROUND_TRIPS = "Round trips of a warm borrow"
LOOPBACK_TIME = "Warm borrow, on loopback"
DISTANT_TIME = "Warm borrow, 1 ms away"

ONE_WAY = 0.0005
"""Seconds that a byte travels: a round trip takes 1 ms more."""

_COUNTED = 20
_PAUSE_TO_COUNT = 0.1
"""Seconds in which the answer to the last reset arrives, on a busy machine, too."""


async def round_trips(server: Cluster, makers: dict[str, Maker]) -> list[Figure]:
    """Counted at a proxy."""
    figures: list[Figure] = []
    for name, make in makers.items():
        with TcpProxy(server.host, server.port) as proxy:
            async with make(server.url(port=proxy.port)) as run:
                await run(10)
                # a contestant borrows twice more, uncounted in its time
                await asyncio.sleep(_PAUSE_TO_COUNT)
                before = proxy.round_trips
                await run(_COUNTED - 2)
                await asyncio.sleep(_PAUSE_TO_COUNT)
                trips = (proxy.round_trips - before) / _COUNTED
        figures.append(Figure(ROUND_TRIPS, name, Spread(trips, trips, trips), "", bar=1.0 if name == NEVER else None))
    return figures


async def on_loopback(server: Cluster, makers: dict[str, Maker], *, rounds: int, batch: int) -> list[Figure]:
    samples = await _in_turns(server.url(), makers, rounds, batch)
    # no bar against hot node-pg: it takes 0.9 to 1.4 times asyncpg's own connection, on which we stand
    bars = {NEVER: {BARE: 1.25, NODE_PG: 1.0}, ALWAYS: {ASYNCPG_POOL: 1.0}}
    return compare(LOOPBACK_TIME, scaled(samples, 1e6), "µs", bars=bars)


async def at_a_distance(server: Cluster, makers: dict[str, Maker], *, rounds: int, batch: int) -> list[Figure]:
    with SlowLine(server.host, server.port, ONE_WAY) as line:
        samples = await _in_turns(server.url(port=line.port), makers, rounds, batch)
    return compare(DISTANT_TIME, scaled(samples, 1e3), "ms", bars={NEVER: {BARE: 1.05, ASYNCPG_POOL: 0.55}})


async def _in_turns(url: str, makers: dict[str, Maker], rounds: int, batch: int) -> Samples:
    """One batch of each contestant a round, each round beginning with another one."""
    async with AsyncExitStack() as stack:
        runs: dict[str, Contestant] = {}
        for name, make in makers.items():
            runs[name] = await stack.enter_async_context(make(url))
            await runs[name](batch)
        return await take_turns(runs, rounds, batch)


async def take_turns(runs: Mapping[str, Contestant], rounds: int, batch: int) -> Samples:
    samples: Samples = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(await runs[name](batch))
    return samples


def scaled(samples: Samples, factor: float) -> Samples:
    return {name: [sample * factor for sample in own] for name, own in samples.items()}
