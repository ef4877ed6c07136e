"""One warm borrow 1 ms away by a borrower that then does something else: the call alone counts, not what follows it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import mean

from examples.harness.postgres import Cluster
from tests.benchmarks.contestants import ALWAYS, ASYNCPG_POOL, BARE, MAKERS, NEVER, Borrower
from tests.benchmarks.figures import Figure, Spread, compare
from tests.benchmarks.slow_line import SlowLine
from tests.benchmarks.warm import ONE_WAY, scaled, take_turns

LONE_TIME = "Lone borrow, 1 ms away"
LONE_ROUND_TRIPS = "Round trips until a lone borrow returns"

PAUSE = 0.004
"""Seconds between two calls, for all contestants alike: the answer to a reset arrives in this time."""

_CONTESTANTS = (BARE, NEVER, ALWAYS, ASYNCPG_POOL)


class _Lone:
    """Runs one borrow at a time, with a pause between two, and counts the answers that each call has waited for."""

    def __init__(self, borrower: Borrower, line: SlowLine) -> None:
        self._once = borrower.once
        self._line = line
        self.round_trips: list[int] = []

    async def __call__(self, times: int) -> float:
        await self._once()
        taken = 0.0
        for _ in range(times):
            await asyncio.sleep(PAUSE)
            before = self._line.round_trips
            began = time.perf_counter()
            await self._once()
            taken += time.perf_counter() - began
            self.round_trips.append(self._line.round_trips - before)
        await asyncio.sleep(PAUSE)
        return taken / times


async def lone_borrowers(server: Cluster, *, rounds: int, batch: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        line = stack.enter_context(SlowLine(server.host, server.port, ONE_WAY))
        runs: dict[str, _Lone] = {}
        for name in _CONTESTANTS:
            borrower = await stack.enter_async_context(MAKERS[name](server.url(port=line.port)))
            await borrower(batch)
            runs[name] = _Lone(borrower, line)
        samples = await take_turns(runs, rounds, batch)
    figures: list[Figure] = []
    for name, run in runs.items():
        trips = mean(run.round_trips)
        bar = 1.0 if name == ALWAYS else None
        figures.append(Figure(LONE_ROUND_TRIPS, name, Spread(trips, trips, trips), "", bar=bar))
    return figures + compare(LONE_TIME, scaled(samples, 1e3), "ms", bars={ALWAYS: {BARE: 1.15}})
