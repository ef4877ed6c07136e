"""A new DNS answer is used at the next connect."""

from __future__ import annotations

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

NAME = "main.cluster.example"


async def test_after_a_failover_the_next_connect_goes_where_the_name_then_leads(server, role, resolver):
    with TcpProxy(server.host, server.port) as old, TcpProxy(server.host, server.port) as new:
        resolver.answers[NAME] = old.host, old.port
        settings = DatabaseSettings(url=f"postgresql://{role}@{NAME}/postgres", sslmode="disable")
        async with GuardedPool(settings) as pool:
            await pool.ping()
            resolver.answers[NAME] = new.host, new.port
            await pool.ping()
            assert (old.accepted, new.accepted) == (1, 0)
            old.reset_all()
            await pool.ping()
            assert (old.accepted, new.accepted) == (1, 1)


async def test_the_end_of_a_sessions_life_leaves_the_old_answer_behind(server, role, resolver, later):
    with TcpProxy(server.host, server.port) as old, TcpProxy(server.host, server.port) as new:
        resolver.answers[NAME] = old.host, old.port
        settings = DatabaseSettings(
            url=f"postgresql://{role}@{NAME}/postgres", sslmode="disable", max_lifetime_ms=20_000
        )
        async with GuardedPool(settings) as pool:
            await pool.ping()
            resolver.answers[NAME] = new.host, new.port
            later(22)
            await pool.ping()
            assert (old.accepted, new.accepted) == (1, 1)


async def test_a_name_that_leads_nowhere_is_told_without_the_name():
    settings = DatabaseSettings(url="postgresql://app@main.invalid/app")
    async with GuardedPool(settings) as pool:
        with pytest.raises(ConnectFailedError, match="its host name could not be resolved") as caught:
            await pool.ping()
    assert "main.invalid" not in str(caught.value)
