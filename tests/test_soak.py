"""A bad day, in short: a server that restarts and a network that fails in every way, under load."""

from __future__ import annotations

import asyncio
import os
import random
import time

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, GuardError
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import assert_accounts_balance, at_rest
from tests.support.eventually import eventually

SECONDS = 30.0 if os.environ.get("CI") == "true" else 8.0
BORROWERS = 20
PATIENCE = 0.5
LIMITS = {
    "connect_timeout_ms": 500,
    "command_timeout_ms": 300,
    "idle_timeout_ms": 1000,
    "breaker_reset_timeout_ms": 50,
    "breaker_reset_timeout_max_ms": 200,
}
LONGEST = PATIENCE + 0.3 + 0.3 + 1.5
"""Wait, statement, release; and what a busy machine adds."""


class Load:
    """Borrowers who never stop asking, and what became of them."""

    def __init__(self, server: Cluster, pool_max: int, proxy: TcpProxy) -> None:
        self.proxy = proxy
        self.pool_max = pool_max
        self.name = f"soak-{pool_max}"
        url = server.url(port=proxy.port, application_name=self.name)
        self.pool = GuardedPool(DatabaseSettings(url=url, pool_max=pool_max, **LIMITS))
        self.asked = self.answered = self.served = 0
        self.longest = 0.0
        self.crowded = 0.0

    async def borrow(self, chance: random.Random) -> None:
        self.asked += 1
        started = time.monotonic()
        try:
            async with self.pool.acquire(timeout=PATIENCE) as connection:
                if chance.random() < 0.1:
                    async with connection.transaction():
                        await connection.fetch("SELECT 1 FROM pg_sleep(0.01)")
                elif chance.random() < 0.02:
                    await connection.fetch("SELECT pg_sleep(10)")
                else:
                    await connection.fetchval("SELECT 1")
            self.served += 1
        except (GuardError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            pass
        finally:
            self.answered += 1
            self.longest = max(self.longest, time.monotonic() - started)

    async def keep_borrowing(self, end: float, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            borrower = asyncio.create_task(self.borrow(chance))
            if chance.random() < 0.05:
                await asyncio.sleep(chance.random() * 0.02)
                borrower.cancel()
            await asyncio.wait([borrower])
            await asyncio.sleep(chance.random() * 0.01)

    async def watch(self, end: float) -> None:
        """How long at a time the pool has more sessions open than it may; a proxy hears of an end a little late."""
        since = None
        while time.monotonic() < end:
            links = [link for link in tuple(self.proxy._links) if link.client.is_open and link.reader.startup]
            now = time.monotonic()
            if len(links) <= self.pool_max:
                since = None
            else:
                since = since or now
                self.crowded = max(self.crowded, now - since)
            await asyncio.sleep(0.002)


async def spoil(loads: list[Load], server: Cluster, end: float) -> None:
    """One fault after the other."""
    chance = random.Random(1)
    faults = ["slow", "deaf", "silence", "reset", "drop", "refuse", "hang", "restart"]
    while time.monotonic() < end - 1.0:
        fault = faults.pop(0)
        faults.append(fault)
        for proxy in [load.proxy for load in loads]:
            if fault == "slow":
                proxy.latency = 0.005
            elif fault in ("deaf", "refuse", "hang"):
                setattr(proxy, fault, True)
            elif fault in ("silence", "reset", "drop"):
                getattr(proxy, f"{fault}_all")()
        if fault == "restart":
            await asyncio.to_thread(server.restart, chance.choice(["fast", "immediate"]))
        await asyncio.sleep(chance.uniform(0.1, 0.4))
        for proxy in [load.proxy for load in loads]:
            proxy.latency = 0.0
            proxy.deaf = proxy.refuse = proxy.hang = False
        await asyncio.sleep(chance.uniform(0.1, 0.3))


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_every_borrower_is_answered_in_time_and_the_bound_holds() -> None:
    with (
        Cluster.start(18) as server,
        TcpProxy(server.host, server.port) as one,
        TcpProxy(server.host, server.port) as other,
    ):
        loads = [Load(server, 1, one), Load(server, 5, other)]
        end = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            group.create_task(spoil(loads, server, end))
            for load in loads:
                group.create_task(load.watch(end))
                for seed in range(BORROWERS):
                    group.create_task(load.keep_borrowing(end, seed))
        for load in loads:
            assert load.answered == load.asked > 200
            assert load.served > load.asked / 20  # faster on a machine that is not busy
            assert load.longest < LONGEST
            assert load.crowded < 0.1
            await eventually(lambda load=load: _recovers(load), within=3.0)
            await at_rest(load.pool)
            stats = load.pool.stats()
            assert (stats["lent"], stats["waiting"]) == (0, 0)
            assert stats["idle"] <= load.pool_max
            assert_accounts_balance(load.pool)
            assert stats["requests"] >= load.asked
        for load in loads:
            await eventually(lambda load=load: _few(server, load), within=3.0, every=0.05)
            await load.pool.close()


async def _recovers(load: Load) -> bool:
    try:
        await load.pool.ping(timeout=1.0)
    except GuardError:
        return False
    return True


async def _few(server: Cluster, load: Load) -> bool:
    """Sessions whose client vanished unseen are gone by now as well."""
    return len(await server.sessions(application_name=load.name)) <= load.pool_max
