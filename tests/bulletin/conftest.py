"""A fleet before one database that is refused, silent or well on command, and its store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.bulletin.board import database_key
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.redis import RedisServer

MakeEnvironment = Callable[..., GuardedPool]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def make_environment(url_via_tcp_proxy: str) -> AsyncIterator[MakeEnvironment]:
    """`make_environment(fleet_url=…)`: a pool with a first open period of 0.2 s; closed after the test."""
    pools: list[GuardedPool] = []

    def make(**settings: Any) -> GuardedPool:
        common = {"url": url_via_tcp_proxy, "breaker_reset_timeout_ms": 200}
        pools.append(GuardedPool(DatabaseSettings(**{**common, **settings})))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


def go_down(proxy: TcpProxy) -> None:
    """Nobody gets to the database any more."""
    proxy.refuse = True
    proxy.reset_all()


async def trip(pool: GuardedPool) -> None:
    """Fail until the circuit is open, and the fleet was told."""
    while pool.stats()["circuit"] != "open":
        with pytest.raises(ConnectFailedError):
            await pool.ping()
    await pool._core.settle(1.0)


async def fail_trials(pool: GuardedPool, later: Callable[[float], None], count: int) -> None:
    """Fail so many trials, each after its open period."""
    for _ in range(count):
        later(50.0)
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        await pool._core.settle(1.0)


def tell_of_others(redis: RedisServer, pool: GuardedPool, count: int = 8) -> None:
    """So many others have opened their circuits."""
    key = f"asyncdb_guard:fleet:1:{{{database_key(pool.settings)}}}:open"
    redis.command("ZADD", key, *(word for number in range(count) for word in ("9999999999999", f"other{number}")))
