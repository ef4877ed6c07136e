"""A session that nobody uses is gone, whatever has become of its process; and it comes back only when somebody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, clock
from asyncdb_guard.events import Event
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import allow, assert_accounts_balance, at_rest
from tests.support.environment_child import Child
from tests.support.eventually import Eventually

PID = "SELECT pg_backend_pid()"
QUIET = 6.0
"""Seconds for which nothing may come back."""


@pytest.mark.slow
async def test_running_frozen_killed_or_cut_off_the_server_shows_no_session(
    server: Cluster, observer: Observer, proxy: TcpProxy, role: str, eventually: Eventually
) -> None:
    def url(name: str, port: int | None = None) -> str:
        return server.url(user=role, port=port, application_name=name)

    async def names() -> list[str]:
        return sorted(row["application_name"] for row in await observer.sessions(user=role))

    async def live(name: str, child: Child) -> None:
        """Use a session, and come to a bad end with it."""
        if "transaction" in name or "work" in name:
            answer = await child.ask(hold="SELECT pg_sleep(60)" if "work" in name else "SELECT 2")
            assert answer == {"holding": True}
        else:
            assert (await child.ask(sql=PID))["error"] is None
        assert name in await names()
        if name.startswith("frozen"):
            child.freeze()
        elif name.startswith("killed"):
            child.kill()
        else:
            proxy.silence_all()
            child.kill()

    limits = {"idle_timeout_ms": 500, "command_timeout_ms": 60_000}
    pool = GuardedPool(DatabaseSettings(url=url("running"), pool_max=3, **limits))
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(url(name, proxy.port if name.startswith("cut") else None), **limits))
            for name in (
                "frozen", "frozen-in-transaction",
                "killed", "killed-in-transaction", "killed-at-work",
                "cut-off", "cut-off-in-transaction",
            )
        }  # fmt: skip
        for name, child in children.items():
            await live(name, child)
        await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.1)") for _ in range(3)))
        assert (await names()).count("running") == 3
        await eventually(lambda: _is_empty(names), within=2.0)
        end = time.monotonic() + QUIET
        while time.monotonic() < end:
            assert await names() == []
            await asyncio.sleep(0.05)
        assert pool.stats()["connects"] == pool.stats()["closed"] == 3
        assert await pool.fetchval("SELECT 1") == 1
    await pool.close()


async def _is_empty(names) -> bool:
    return await names() == []


async def test_a_session_in_use_is_not_idle(
    observer: Observer, url: str, role: str, eventually: Eventually, later: Callable[[float], None]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=60_000, session_reset="never")) as pool:
        first = await pool.fetchval(PID)
        for _ in range(5):
            later(40)
            assert await pool.fetchval(PID) == first
        later(60)
        await eventually(lambda: pool.stats()["closed"] == 1)
        assert await observer.count(user=role) == 0


async def test_each_session_has_a_time_of_its_own(
    url: str, eventually: Eventually, later: Callable[[float], None]
) -> None:
    heard: list[Event] = []
    settings = DatabaseSettings(url=url, pool_max=2, idle_timeout_ms=60_000)
    async with GuardedPool(settings, on_event=heard.append) as pool:
        async with pool.acquire(), pool.acquire():
            pass
        await at_rest(pool)
        later(40)
        await pool.ping()
        await at_rest(pool)
        later(30)
        await eventually(lambda: pool.stats()["closed"])
        assert (pool.stats()["closed"], pool.stats()["idle"]) == (1, 1)
        later(40)
        await eventually(lambda: pool.stats()["closed"] == 2)
        closings = [event.reason for event in heard if event.name == "connection_closed"]
        assert closings == ["idle_timeout", "idle_timeout"]
        assert_accounts_balance(pool)


async def test_whoever_asks_while_the_session_says_goodbye_gets_a_new_one(
    server: Cluster, url: str, eventually: Eventually
) -> None:
    allow(server, url, 1)
    async with GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=100)) as pool:
        for _ in range(5):
            await pool.ping()
            await eventually(lambda: not pool.stats()["idle"], every=0.0005)
            await pool.ping()
        assert pool.stats()["connect_failures"] == 0


async def test_the_server_is_told_how_long_to_wait(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=1500)) as pool, pool.acquire() as connection:
        for name, value in (
            ("idle_session_timeout", "1750ms"),
            ("idle_in_transaction_session_timeout", "1750ms"),
            ("client_connection_check_interval", "250ms"),
        ):
            assert await connection.fetchval(f"SHOW {name}") == value


async def test_an_old_session_is_replaced_give_or_take_ten_percent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0.0
    monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + passed))
    many = 20  # one in half a million times, all of them are younger, or all older, than the mean
    settings = DatabaseSettings(
        url=url, pool_max=many, max_lifetime_ms=1_000_000, idle_timeout_ms=2_000_000, connect_timeout_ms=10_000
    )
    async with GuardedPool(settings) as pool:

        async def use_all() -> int:
            async with AsyncExitStack() as stack:
                for _ in range(many):
                    await stack.enter_async_context(pool.acquire())
            await at_rest(pool)
            return pool.stats()["replaced"]

        assert await use_all() == 0
        passed = 890.0
        assert await use_all() == 0
        passed = 1000.0
        assert 0 < await use_all() < many
        assert pool.stats()["connects"] == many + pool.stats()["replaced"]
        passed = 2200.0
        replaced = pool.stats()["replaced"]
        assert await use_all() == replaced + many


async def test_an_old_session_is_replaced_though_it_never_rests(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0.0
    monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + passed))
    heard: list[Event] = []
    async with GuardedPool(DatabaseSettings(url=url, max_lifetime_ms=100_000), on_event=heard.append) as pool:
        async with pool.acquire() as connection:
            first = await connection.fetchval(PID)
            waiting = asyncio.create_task(pool.fetchval(PID))
            await asyncio.sleep(0)
            passed = 200.0
        assert await waiting != first
        assert [event.reason for event in heard if event.name == "connection_replaced"] == ["max_lifetime"]


async def test_a_lifetime_of_zero_is_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DatabaseSettings(url=url, max_lifetime_ms=0, idle_timeout_ms=86_400_000, session_reset="never")
    async with GuardedPool(settings) as pool:
        pid = await pool.fetchval(PID)
        await at_rest(pool)
        monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + 80_000))
        assert await pool.fetchval(PID) == pid


async def test_a_healthy_day_leaves_no_line_in_any_log(
    url: str, observer: Observer, role: str, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = DatabaseSettings(url=url, pool_max=2, idle_timeout_ms=100, max_lifetime_ms=150)
    async with GuardedPool(settings) as pool:
        for _ in range(2):
            end = time.monotonic() + 0.25
            while time.monotonic() < end:
                await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.001)") for _ in range(5)))
            await eventually(lambda: not pool.stats()["idle"])
        await pool.ping()
        await observer.terminate(user=role)
        await pool.ping()
        assert pool.stats()["replaced"] > 0
        assert pool.stats()["closed"] > 0
    ours = [record for record in caplog.records if record.name != "asyncio" or record.levelno > logging.INFO]
    assert [record.getMessage() for record in ours if "Executing" not in record.getMessage()] == []
