"""One warm borrow 1 ms away by a borrower that then does something else: the call alone counts, not what follows it."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.contestants import ALWAYS, ASYNCPG_POOL, BARE, MAKERS, NEVER, Borrower
from tests.benchmarks.figures import Figure, Spread, compare
from tests.benchmarks.slow_line import SlowLine
from tests.benchmarks.warm import ONE_WAY, scaled, take_turns

LONE_TIME = "Lone borrow, 1 ms away"
LONE_ROUND_TRIPS = "Round trips until a lone borrow returns"

PAUSE = 0.004
"""Seconds between two calls, for all contestants alike: the answer to a reset arrives in this time."""

_PAUSE_TO_COUNT = 0.1
"""The same, where a busy machine must not spoil a count."""

_COUNTED = 5
_CONTESTANTS = (BARE, NEVER, ALWAYS, ASYNCPG_POOL)


class _Lone:
    """Times one borrow after the other, with a pause between two."""

    def __init__(self, borrower: Borrower) -> None:
        self._once = borrower.once

    async def __call__(self, times: int) -> float:
        await self._once()
        taken = 0.0
        for _ in range(times):
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            await self._once()
            taken += time.perf_counter() - began
        await asyncio.sleep(PAUSE)
        return taken / times

    async def round_trips(self, line: SlowLine) -> float:
        """How many answers one borrow waits for."""
        await self._once()
        awaited: list[int] = []
        for _ in range(_COUNTED):
            await asyncio.sleep(_PAUSE_TO_COUNT)
            before = line.round_trips
            await self._once()
            awaited.append(line.round_trips - before)
        return statistics.median(awaited)  # on a busy machine an answer to a reset may slip in before one count


async def lone_borrowers(server: Cluster, *, rounds: int, batch: int) -> list[Figure]:
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        line = stack.enter_context(SlowLine(server.host, server.port, ONE_WAY))
        runs: dict[str, _Lone] = {}
        for name in _CONTESTANTS:
            borrower = await stack.enter_async_context(MAKERS[name](server.url(port=line.port)))
            await borrower(batch)
            runs[name] = _Lone(borrower)
            trips = await runs[name].round_trips(line)
            bar = 1.0 if name == ALWAYS else None
            figures.append(Figure(LONE_ROUND_TRIPS, name, Spread(trips, trips, trips), "", bar=bar))
        samples = await take_turns(runs, rounds, batch)
    return figures + compare(LONE_TIME, scaled(samples, 1e3), "ms", bars={ALWAYS: {BARE: 1.15}})
