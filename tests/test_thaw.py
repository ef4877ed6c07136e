"""After any freeze the first call gets a working connection, unseen by the caller and uncounted by the breaker."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from asyncdb_guard import AcquireTimeoutError, DatabaseSettings, GuardedPool, clock
from asyncdb_guard.connect.sockets import socket_probe
from asyncdb_guard.pool.health import RESET_TIMEOUT
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.environment_child import Child
from tests.support.eventually import Eventually

PID = "SELECT pg_backend_pid()"
ROUNDS = 10
KINDS = [
    pytest.param({}, id="between two calls"),
    pytest.param({"loop_runs": True}, id="while the loop runs"),
    pytest.param({"uvloop": True}, id="with uvloop"),
]


async def survives(child: Child, fault: Callable[[], Any], *, slept: float = 0.0) -> list[str]:
    """Freeze the child ten times, let the fault strike, thaw it; return why its sessions were replaced."""
    before = await child.ask(sql=PID)
    assert before["error"] is None
    reasons = []
    for _ in range(ROUNDS):
        child.freeze()
        outcome = fault()
        if asyncio.iscoroutine(outcome):
            await outcome
        child.thaw()
        first = await child.ask(sql=PID, slept=slept)
        assert first["error"] is None
        assert first["seconds"] < 1.0
        assert first["value"] != before["value"]
        assert first["log"] == []
        assert first["stats"]["circuit"] == "closed"
        assert first["stats"]["failures"] == first["stats"]["connect_failures"] == 0
        reasons += [
            event for event in first["events"] if event.startswith(("connection_replaced", "connection_closed"))
        ]
        before = first
    assert len(reasons) == ROUNDS
    return sorted(set(reasons))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
async def test_a_session_that_the_server_ended(url: str, role: str, observer: Observer, kind: dict[str, Any]) -> None:
    with Child(url, breaker_fail_max=1, **kind) as child:
        reasons = await survives(child, lambda: observer.terminate(user=role))
        # closed, where the loop noticed before the next call did
        assert set(reasons) <= {"connection_replaced lost", "connection_closed lost"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
async def test_a_session_that_was_reset(proxy: TcpProxy, url_via_tcp_proxy: str, kind: dict[str, Any]) -> None:
    with Child(url_via_tcp_proxy, breaker_fail_max=1, **kind) as child:
        reasons = await survives(child, proxy.reset_all)
        assert set(reasons) <= {"connection_replaced lost", "connection_closed lost"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slept", [30.0, 1000.0])
@pytest.mark.slow
async def test_a_path_that_is_silently_dead(
    proxy: TcpProxy, url_via_tcp_proxy: str, kind: dict[str, Any], slept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_thaw.ROUNDS", 10 if not kind else 3)
    with Child(url_via_tcp_proxy, breaker_fail_max=1, **kind) as child:
        reasons = await survives(child, proxy.silence_all, slept=slept)
        expected = {f"connection_replaced {'unresponsive' if slept == 30.0 else 'idle_timeout'}"}
        # it may freeze before it has read the answer to its reset
        expected |= {"connection_replaced unresponsive", "connection_replaced lost"}
        assert set(reasons) <= expected


@pytest.mark.slow
async def test_a_server_that_was_restarted() -> None:
    modes = iter(["fast", "immediate"] * ROUNDS)
    with Cluster.start(18) as server, Child(server.url(), breaker_fail_max=1) as child:
        assert await survives(child, lambda: server.restart(next(modes))) == ["connection_replaced lost"]


@pytest.mark.debian
@pytest.mark.parametrize("kind", KINDS)
async def test_all_of_it_with_tls(
    tls_server: tuple[Cluster, str], kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_thaw.ROUNDS", 3)
    server, authority = tls_server
    observer = Observer(server)
    with TcpProxy(server.host, server.port) as proxy:
        url = server.url(port=proxy.port, sslmode="verify-full", sslrootcert=authority, application_name="frozen")
        with Child(url, breaker_fail_max=1, **kind) as child:
            await survives(child, lambda: observer.terminate(application_name="frozen"))
            await survives(child, proxy.reset_all)
            reasons = await survives(child, proxy.silence_all, slept=30.0)
            assert set(reasons) <= {"connection_replaced unresponsive", "connection_replaced lost"}
            assert proxy.tls_requests > 9
    await observer.close()


@pytest.mark.debian
async def test_a_healthy_warm_borrow_costs_no_round_trip_with_tls_either(tls_server: tuple[Cluster, str]) -> None:
    server, authority = tls_server
    with TcpProxy(server.host, server.port) as proxy:
        url = server.url(port=proxy.port, sslmode="verify-full", sslrootcert=authority)
        async with GuardedPool(DatabaseSettings(url=url, session_reset="never")) as pool:
            for _ in range(3):
                await pool.fetchval(PID)
            before = proxy.round_trips
            for _ in range(10):
                await pool.fetchval(PID)
            assert proxy.round_trips == before + 10


@pytest.mark.parametrize(("session_reset", "round_trips"), [("never", 1), ("always", 2)])
async def test_a_healthy_warm_borrow_costs_no_round_trip(
    proxy: TcpProxy, url_via_tcp_proxy: str, session_reset: str, round_trips: int
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset=session_reset)) as pool:
        for _ in range(2):
            await pool.fetchval(PID)
        await at_rest(pool)
        before = proxy.round_trips
        for _ in range(20):
            await pool.fetchval(PID)
        await at_rest(pool)
        assert proxy.round_trips == before + 20 * round_trips
        async with pool.acquire():
            pass
        await at_rest(pool)
        assert proxy.round_trips == before + 20 * round_trips + (round_trips - 1)


async def test_a_session_that_rested_costs_one_ping(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset="never")) as pool:
        pid = await pool.fetchval(PID)
        assert await pool.fetchval(PID) == pid
        before = proxy.round_trips
        monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + 1.1))
        assert await pool.fetchval(PID) == pid
        assert proxy.round_trips == before + 2
        assert proxy.statements.count("SELECT 1") == 1
        assert await pool.fetchval(PID) == pid
        assert proxy.round_trips == before + 3
        assert pool.stats()["replaced"] == 0


async def test_a_wall_clock_that_was_set_back_changes_nothing(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset="never")) as pool:
        for _ in range(2):
            await pool.fetchval(PID)
        before = proxy.round_trips
        monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() - 86_400))
        await pool.fetchval(PID)
        assert proxy.round_trips == before + 1


async def test_a_message_that_waits_in_the_socket_only_costs_a_ping(
    server: Cluster, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset="never")) as pool:
        await pool.execute("LISTEN news")
        pid = await pool.fetchval(PID)
        await pool.fetchval(PID)
        before = proxy.round_trips
        # all of this blocks the loop, so that nobody reads the message
        server.psql("NOTIFY news")
        (session,) = pool._core.loop_pool.connections.idle
        while not session.readable():
            os.sched_yield()
        assert await pool.fetchval(PID) == pid
        assert proxy.round_trips == before + 2
        assert pool.stats()["replaced"] == 0


@pytest.mark.parametrize("answered", [True, False])
async def test_a_freeze_before_the_answer_to_a_reset_was_read(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        pid = await pool.fetchval(PID)
        async with pool.acquire() as connection:
            await connection.execute("SELECT 1")
            if not answered:
                proxy.silence_all()
        await asyncio.sleep(0)  # Python 3.11 sends the reset in the loop's next round
        (session,) = pool._core.loop_pool.connections.at_work
        # all of this blocks the loop, so that nobody reads the answer
        while answered and not session.readable():
            os.sched_yield()
        monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + 30.0))
        began = time.monotonic()
        assert (await pool.fetchval(PID) == pid) is answered
        assert time.monotonic() - began < RESET_TIMEOUT
        assert pool.stats()["replaced"] == (not answered)


async def test_where_the_socket_cannot_be_had_each_borrow_pings(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdb_guard.connect.pooled_connection.socket_probe", lambda _: socket_probe(None))
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, session_reset="never")) as pool:
        for _ in range(2):
            await pool.fetchval(PID)
        before = proxy.round_trips
        await pool.fetchval(PID)
        assert proxy.round_trips == before + 2
        pids = await asyncio.gather(*(pool.fetchval(PID) for _ in range(10)))
        assert len(set(pids)) == 1


async def test_a_dead_path_leaves_most_of_a_short_timeout_to_the_new_connection(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1)) as pool:
        await pool.ping()
        await at_rest(pool)
        proxy.silence_all()
        monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + 5))
        started = time.monotonic()
        await pool.ping(timeout=0.8)
        assert time.monotonic() - started < 0.45
        assert pool.stats()["replaced"] == 1


@pytest.mark.slow
async def test_a_dead_path_is_found_out_once_however_many_sessions_it_had(
    proxy: TcpProxy, url_via_tcp_proxy: str, observer: Observer, role: str, later: Callable[[float], None]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=20, session_reset="never")) as pool:
        await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.5)") for _ in range(20)))
        assert pool.stats()["idle"] == 20
        proxy.silence_all()
        later(5)
        started = time.monotonic()
        assert await pool.fetchval("SELECT 1") == 1
        assert time.monotonic() - started < 1.5
        stats = pool.stats()
        assert (stats["connect_failures"], stats["replaced"]) == (0, 1)


async def test_a_hasty_caller_costs_no_session_its_place(
    proxy: TcpProxy, url_via_tcp_proxy: str, later: Callable[[float], None], eventually: Eventually
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=5)) as pool:
        await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.3)") for _ in range(5)))
        await at_rest(pool)
        later(1.1)
        proxy.latency = 0.01
        for timeout in (0.0, 0.03):
            with suppress(AcquireTimeoutError):
                async with pool.acquire(timeout=timeout):
                    pass
        await eventually(lambda: pool.stats()["idle"] == 5)
        assert pool.stats()["replaced"] == pool.stats()["closed"] == 0
