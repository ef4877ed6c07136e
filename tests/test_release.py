"""The end of a block costs its borrower nothing: the reset is sent, and only the next borrower waits for its answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.runtime import lambda_handler
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import allow, assert_accounts_balance, at_rest
from tests.support.eventually import eventually

LATENCY = 0.05
"""Seconds each way."""


async def test_a_lone_borrower_pays_one_round_trip(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset="always")) as pool:
        await pool.ping()
        await at_rest(pool)
        proxy.latency = LATENCY
        for _ in range(3):
            before = proxy.round_trips
            started = time.monotonic()
            assert await pool.fetchval("SELECT $1::int", 1) == 1
            assert time.monotonic() - started >= 2 * LATENCY
            await at_rest(pool)
            assert proxy.round_trips - before <= 3  # the first time, asyncpg prepares the statement

        async def in_one_round_trip() -> bool:
            before, started = proxy.round_trips, time.monotonic()
            await pool.fetchval("SELECT $1::int", 1)
            taken = time.monotonic() - started
            await at_rest(pool)
            assert proxy.round_trips - before == 2
            return taken < 3.5 * LATENCY  # two round trips take four

        await eventually(in_one_round_trip)  # on a busy machine, one takes longer
        proxy.latency = 0.0


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_dead_path_at_release_ends_the_block_at_once(
    proxy: TcpProxy, url_via_tcp_proxy: str, session_reset: Any
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset=session_reset)) as pool:
        with suppress(KeyError):
            async with pool.acquire() as connection:
                await connection.execute("SELECT 1")
                proxy.silence_all()
                started = time.monotonic()
                raise KeyError
        assert time.monotonic() - started < 0.4  # a reset may take half a second
        started = time.monotonic()
        assert await pool.fetchval("SELECT 1") == 1
        assert time.monotonic() - started < 1.5
        assert pool.stats()["circuit"] == "closed"
        assert_accounts_balance(pool)


async def test_a_cancelled_statement_ends_its_block_at_once(url: str, observer: Observer, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        borrower = asyncio.create_task(pool.execute("SELECT pg_sleep(30)"))
        await eventually(lambda: pool.stats()["lent"] == 1)
        await asyncio.sleep(0.02)
        borrower.cancel()
        started = time.monotonic()
        await asyncio.wait([borrower])
        assert time.monotonic() - started < 0.4  # a reset may take half a second
        assert await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'") == 0
        assert await observer.count(user=role) == 1


@pytest.mark.parametrize("pool_max", [1, 3])
@pytest.mark.slow
async def test_nobody_ever_gets_a_session_that_is_not_reset(url: str, pool_max: int, server: Cluster) -> None:
    allow(server, url, pool_max)
    chance = random.Random(5)

    async def borrow() -> None:
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW work_mem") == default
            await connection.execute("SET work_mem = '1MB'; SELECT pg_advisory_lock(1)" if chance.random() < 0.3
                                     else "SET work_mem = '1MB'")  # fmt: skip
            if chance.random() < 0.3:
                await connection.execute("BEGIN")
            if chance.random() < 0.2:
                await connection.execute("SELECT pg_sleep(0.05)")

    async with GuardedPool(DatabaseSettings(url=url, pool_max=pool_max, connect_timeout_ms=20_000)) as pool:
        default = await pool.fetchval("SHOW work_mem")
        borrowers = [asyncio.create_task(borrow()) for _ in range(150)]
        for victim in chance.sample(borrowers, 50):
            await asyncio.sleep(chance.random() * 0.01)
            victim.cancel()
        outcomes = await asyncio.gather(*borrowers, return_exceptions=True)
        assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
        await at_rest(pool)
        assert pool.stats()["connect_failures"] == 0


def test_an_invocation_ends_without_waiting_for_its_reset(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer lies in the socket when the environment thaws, and the next invocation is served at once."""
    pool = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy))

    @lambda_handler
    async def invoke(event: object, context: object = None) -> object:
        return await pool.fetchval("SELECT pg_backend_pid()")

    first = invoke(None, None)
    proxy.latency = LATENCY

    def is_served_at_once() -> bool:
        invoke(None, None)
        time.sleep(4 * LATENCY)  # the reset is answered, and no event loop runs
        assert proxy.statements[-1].startswith("SELECT pg_advisory_unlock_all") or "RESET ALL" in proxy.statements[-1]
        started = time.monotonic()
        assert invoke(None, None) == first
        return time.monotonic() - started < 3.5 * LATENCY

    assert any(is_served_at_once() for _ in range(5))  # on a busy machine, one takes longer
    proxy.latency = 0.0


def test_a_session_that_died_during_its_reset_is_replaced_unseen(
    server: Cluster, url: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1))

    @lambda_handler
    async def invoke(event: object, context: object = None) -> object:
        return await pool.fetchval("SELECT pg_backend_pid()")

    first = invoke(None, None)
    server.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
    assert _soon(lambda: server.psql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'").strip() == "0")
    assert invoke(None, None) != first
    assert pool.stats()["circuit"] == "closed"


def test_a_statement_that_a_call_broke_off_does_not_outlive_it(
    server: Cluster, url: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lambda freezes the environment right after the call, so what the server must hear has to be sent before."""
    pool = GuardedPool(DatabaseSettings(url=url))

    @lambda_handler
    async def invoke(event: object, context: object = None) -> str:
        try:
            async with asyncio.timeout(0.1):
                await pool.execute("SELECT pg_sleep(30)")
        except TimeoutError:
            return "late"
        return "done"

    active = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}' AND state = 'active'"
    assert invoke(None, None) == "late"
    assert _soon(lambda: server.psql(active).strip() == "0")


def _soon(look: Callable[[], bool]) -> bool:
    """Without an event loop, which would do the work that must be done by now."""
    end = time.monotonic() + 1.0
    while not look() and time.monotonic() < end:
        time.sleep(0.02)
    return look()
