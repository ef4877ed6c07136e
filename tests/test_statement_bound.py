"""The server ends a statement of a client that is cut off; a caller's own longer timeout still holds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import Connection, DatabaseSettings, GuardedPool, StatementTimeoutError
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.eventually import Eventually


async def test_a_statement_on_a_dead_path_does_not_keep_its_backend(
    proxy: TcpProxy, url_via_tcp_proxy: str, observer: Observer, role: str, eventually: Eventually
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, command_timeout_ms=200, breaker_fail_max=1000)
    async with GuardedPool(settings) as pool:
        await pool.ping()
        await at_rest(pool)
        statement = asyncio.create_task(pool.execute("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.05)
        proxy.silence_all()
        with pytest.raises(TimeoutError):
            await statement

        async def runs_nothing() -> bool:
            return all(row["state"] != "active" for row in await observer.sessions(user=role))

        await eventually(runs_nothing, within=2.0)


@pytest.mark.parametrize("slow_from", ["the login", "the end of init="])
async def test_a_connect_has_its_own_bound_whatever_that_of_a_statement_is(
    proxy: TcpProxy, url_via_tcp_proxy: str, slow_from: str
) -> None:
    async def init(connection: Connection) -> None:
        await connection.execute("SET timezone = 'Asia/Tokyo'")
        proxy.latency = 0.06

    settings = DatabaseSettings(url=url_via_tcp_proxy, command_timeout_ms=100)
    async with GuardedPool(settings, init=init if slow_from == "the end of init=" else None) as pool:
        proxy.latency = 0.06 if slow_from == "the login" else 0.0
        async with pool.acquire() as connection:
            with pytest.raises(StatementTimeoutError):
                await connection.execute("SELECT 1")
        proxy.latency = 0.0


@pytest.mark.parametrize("session_reset", ["always", "never"])
@pytest.mark.slow
async def test_a_longer_timeout_of_the_callers_own_holds_and_is_gone_afterwards(url: str, session_reset: Any) -> None:
    settings = DatabaseSettings(url=url, command_timeout_ms=100, session_reset=session_reset)
    async with GuardedPool(settings) as pool:
        assert await pool.fetchval("SELECT 1 FROM pg_sleep(0.8)", timeout=2.0) == 1
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW statement_timeout") == "600ms"
            assert await connection.execute("SELECT 1 FROM pg_sleep(0.8)", timeout=2.0) == "SELECT 1"
            async with connection.transaction():
                assert await connection.fetchrow("SELECT 1 FROM pg_sleep(0.7)", timeout=2.0) == (1,)
            assert await connection.fetchval("SHOW statement_timeout") == "600ms"
        assert pool.stats()["connects"] == 1


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_longer_timeout_that_failed_does_not_reach_the_next_borrower(url: str, session_reset: Any) -> None:
    settings = DatabaseSettings(url=url, command_timeout_ms=100, session_reset=session_reset)
    async with GuardedPool(settings) as pool:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await pool.fetchval("SELECT 1 / 0", timeout=5.0)
        assert await pool.fetchval("SHOW statement_timeout") == "600ms"


async def test_a_limit_that_the_dba_set_is_not_raised(server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} SET statement_timeout = '150ms'")
    async with GuardedPool(DatabaseSettings(url=url, command_timeout_ms=5000)) as pool:
        started = time.monotonic()
        with pytest.raises(asyncpg.QueryCanceledError):
            await pool.fetchval("SELECT pg_sleep(5)", timeout=10.0)
        assert time.monotonic() - started < 2.0
