"""A server that is slow to log in, as an overloaded one is: a connect that was given up still has its place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool, GuardError
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import allow
from tests.support.eventually import eventually

DELAY = 1
"""Seconds for each login, more than a caller waits."""


@pytest.fixture
def slow_server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster.start(16) as server:
        server.psql("CREATE ROLE app LOGIN")
        server.psql(f"ALTER SYSTEM SET post_auth_delay = {DELAY}")
        server.psql("SELECT pg_reload_conf()")
        yield server


@pytest.mark.slow
async def test_a_login_that_was_given_up_keeps_its_place_until_the_server_lets_go(slow_server: Cluster) -> None:
    url = slow_server.url(user="app")
    allow(slow_server, url, 1)
    failures = []
    # a given-up login keeps its place for 4 s at most: much longer than this server needs, on a busy machine, too
    settings = DatabaseSettings(
        url=url, connect_timeout_ms=800, breaker_fail_max=1000, breaker_reset_timeout_ms=50,
        breaker_reset_timeout_max_ms=50,
    )  # fmt: skip
    async with GuardedPool(settings) as pool:
        end = time.monotonic() + 3 * DELAY
        while time.monotonic() < end:
            try:
                await pool.ping(timeout=0.2)
            except GuardError as error:
                failures.append(error)
        slow_server.psql("ALTER SYSTEM RESET post_auth_delay")
        slow_server.psql("SELECT pg_reload_conf()")
        await eventually(lambda: _works(pool), within=20.0)
    # the role's limit would refuse a second session: none was tried
    assert not any(isinstance(error, ConnectFailedError) and "53300" in str(error) for error in failures)
    assert len(failures) > 5


async def _works(pool: GuardedPool) -> bool:
    with contextlib.suppress(GuardError):
        return await pool.fetchval("SELECT 1") == 1
    return False


async def test_the_place_is_free_as_soon_as_the_server_has_let_go(
    proxy: TcpProxy, url_via_tcp_proxy: str, later: Callable[[float], None]
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, connect_timeout_ms=400, breaker_fail_max=1000)
    async with GuardedPool(settings) as pool:
        proxy.hang = True
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        proxy.hang = False
        later(10)  # past the open period
        started = time.monotonic()
        await pool.ping()
        assert time.monotonic() - started < 1.5  # a late login keeps its place for 2 s


async def test_a_login_that_was_given_up_leaves_no_connection_behind_after_close(
    proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, connect_timeout_ms=200))
    proxy.deaf = True
    with pytest.raises(ConnectFailedError):
        await pool.ping()
    started = time.monotonic()
    await pool.close(timeout=0.2)
    assert time.monotonic() - started < 1.0
    await asyncio.sleep(0)
