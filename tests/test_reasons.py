"""Why a session is not lent again: the reasons in docs/observing.md, as a listener hears them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard.pool import health
from tests.support.bound import allow, at_rest
from tests.support.speaker import Platform
from tests.support.witness import Witness, ahead

if TYPE_CHECKING:
    from asyncdb_guard import Connection
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
    from tests.support.eventually import Eventually

SESSION = {"session_reset": "never"}
KEPT: list[tuple[str, str]] = []


def die(server: Cluster, role: str) -> None:
    """End the sessions while our event loop stands still, so that nobody sees it before the next use."""
    server.psql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'")


# -- found at the next borrow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 2])
async def test_a_session_that_ended_while_nobody_looked(server: Cluster, role: str, url: str, rounds: int) -> None:
    """Or nearly so: after two rounds of the loop the driver has read the message, and not yet the end of the stream."""
    async with Witness(url, **SESSION) as pool:
        await pool.works()
        die(server, role)
        for _ in range(rounds):
            await asyncio.sleep(0)
        began = time.monotonic()
        assert await pool.works() == [("replaced", "lost")]
        assert time.monotonic() - began < 0.3, "the driver is out of step, and can say no goodbye"


async def test_one_that_was_seen_to_end(observer: Observer, role: str, url: str, eventually: Eventually) -> None:
    async with Witness(url, **SESSION) as pool:
        await pool.works()
        (session,) = pool._core.loop_pool.connections.idle
        await observer.terminate(user=role)
        await eventually(session.is_closed)
        assert await pool.works() == [("replaced", "lost")]


async def test_a_path_that_is_silently_dead(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Witness(url_via_tcp_proxy, **SESSION) as pool:
        await pool.works()
        proxy.silence_all()
        ahead(monkeypatch, 1.1)
        await pool.ping(timeout=0.4)  # nobody waits for an answer to a goodbye
        assert pool.endings() == [("replaced", "unresponsive")]


@pytest.mark.parametrize(
    ("passed", "why"),
    [(0.9, KEPT), (1.1, KEPT), (59.0, KEPT), (61.0, [("replaced", "idle_timeout")])],
)
async def test_one_that_has_rested_for_long(
    url: str, monkeypatch: pytest.MonkeyPatch, passed: float, why: list[tuple[str, str]]
) -> None:
    async with Witness(url, **SESSION) as pool:
        await pool.works()
        ahead(monkeypatch, passed)
        assert await pool.works() == why


async def test_one_that_is_old(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Witness(url, max_lifetime_ms=10_000, **SESSION) as pool:
        await pool.works()
        ahead(monkeypatch, 8.0)
        assert await pool.works() == KEPT
        ahead(monkeypatch, 20.0)
        assert await pool.works() == [("replaced", "max_lifetime")]


async def test_one_whose_node_is_no_longer_of_the_kind_that_was_asked_for(url: str) -> None:
    async with Witness(f"{url}?target_session_attrs=read-write", **SESSION) as pool:
        await pool.works()
        assert await pool.works() == KEPT
        await pool.execute("SET default_transaction_read_only = on")
        assert await pool.works() == [("replaced", "wrong_node")]


async def test_one_whose_node_tells_so_with_the_answer_to_the_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = False
    platform = Platform(
        reports=lambda: {
            "in_hot_standby": "off",
            "default_transaction_read_only": "on" if changed and platform.logins == 1 else "off",
        }
    )
    async with platform.serve() as url, Witness(f"{url}&target_session_attrs=read-write", **SESSION) as pool:
        for passed, change, why in ((0.0, False, KEPT), (1.1, False, KEPT), (2.2, True, [("replaced", "wrong_node")])):
            ahead(monkeypatch, passed)
            changed = change
            await pool.ping()
            assert pool.endings() == why


async def test_one_that_refuses_its_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = False
    platform = Platform(lambda _: "53200" if refusing and platform.logins == 1 else None)
    async with platform.serve() as url, Witness(url, **SESSION) as pool:
        await pool.ping()
        refusing = True
        ahead(monkeypatch, 1.1)
        await pool.ping()
        assert pool.endings() == [("replaced", "lost")]


# -- found at its return -----------------------------------------------------------------------------------------------


async def change_a_codec(connection: Connection) -> None:
    await connection.set_type_codec("json", schema="pg_catalog", encoder=repr, decoder=str)


async def leave_a_transaction(connection: Connection) -> None:
    await connection.execute("BEGIN")


async def leave_a_listener(connection: Connection) -> None:
    with pytest.warns(asyncpg.InterfaceWarning):
        await connection.add_listener("news", print)


async def confuse_the_driver(connection: Connection) -> None:
    bare: Any = connection
    bare._con._stmt_exclusive_section._acquired = True  # as an exception of a signal handler leaves it


async def nothing(connection: Connection) -> None:
    await connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("block", "always", "never"),
    [
        (nothing, True, True),
        (change_a_codec, False, False),
        (leave_a_transaction, True, False),
        (confuse_the_driver, False, False),
    ],
)
@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_what_a_borrower_may_leave_behind(
    url: str, block: Any, always: bool, never: bool, session_reset: str
) -> None:
    async with Witness(url, session_reset=session_reset) as pool:
        async with pool.acquire() as connection:
            await block(connection)
        await at_rest(pool)
        kept = always if session_reset == "always" else never
        assert await pool.works() == (KEPT if kept else [("closed", "unclean")])


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_session_that_dies_before_its_reset(server: Cluster, role: str, url: str, session_reset: str) -> None:
    async with Witness(url, session_reset=session_reset) as pool:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            die(server, role)
        began = time.monotonic()
        await at_rest(pool)
        assert pool.endings() == [("closed", "lost")]
        assert time.monotonic() - began < 0.3, "the server said that it is over, and nobody has to wait"


async def test_a_statement_that_goes_on_behind_a_broken_path_keeps_the_place(
    server: Cluster, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    """The server notices the end within a quarter of a second; a connect before that would be one session more."""
    allow(server, url_via_tcp_proxy, 1)
    async with Witness(url_via_tcp_proxy) as pool:
        async with pool.acquire() as connection:
            stray = asyncio.create_task(connection.execute("SELECT pg_sleep(9)"))
            await asyncio.sleep(0.02)
            proxy.hang = True  # the request to cancel it does not arrive
        proxy.reset_all()
        proxy.hang = False
        await pool.works()
        assert (pool.stats()["connects"], pool.stats()["connect_failures"]) == (2, 0)
        await asyncio.wait([stray])
        stray.exception()


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_path_that_dies_before_the_reset(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch, session_reset: str
) -> None:
    monkeypatch.setattr(health, "RESET_TIMEOUT", 0.05)
    async with Witness(url_via_tcp_proxy, session_reset=session_reset) as pool:
        async with pool.acquire() as connection:
            await connection.execute("SELECT 1" if session_reset == "always" else "BEGIN")
            proxy.silence_all()
            began = time.monotonic()
        await at_rest(pool)
        assert pool.endings() == [("closed", "unresponsive")]
        if session_reset == "always":
            assert time.monotonic() - began < 0.3, "nobody waits for an answer to a goodbye"


async def test_a_reset_that_the_server_refuses_for_once() -> None:
    platform = Platform(lambda sql: "53200" if "RESET ALL" in sql and platform.logins == 1 else None)
    async with platform.serve() as url, Witness(url) as pool:
        async with pool.acquire():
            pass
        await at_rest(pool)
        assert pool.endings() == [("closed", "unclean")]
        async with pool.acquire():
            pass
        await at_rest(pool)
        assert pool.endings() == [("closed", "unclean")]


@pytest.mark.parametrize("by_itself", [False, True])
async def test_a_session_that_takes_no_writes(server: Cluster, role: str, url: str, by_itself: bool) -> None:
    if not by_itself:
        server.psql(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    async with Witness(url) as pool:
        assert await pool.works() == KEPT  # it reads, and nobody has asked
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.acquire() as connection, connection.transaction(readonly=by_itself):
                await connection.execute("CREATE TABLE t ()")
        await at_rest(pool)
        assert pool.endings() == (KEPT if by_itself else [("closed", "read_only")])
