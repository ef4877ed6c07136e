"""The face of `GuardedPool`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import ConfigurationError, DatabaseSettings, GuardedPool, PoolClosedError
from asyncdb_guard.events import Event
from asyncdb_guard.testing.postgres.observer import Observer
from tests.support.bound import assert_accounts_balance, at_rest
from tests.support.program import run


@pytest.fixture
async def pool(url: str):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        yield pool


async def test_acquire_lends_a_connection_of_asyncpg(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        assert isinstance(connection, asyncpg.pool.PoolConnectionProxy)
        assert await connection.fetchval("SELECT $1::int + 1", 1) == 2


async def test_the_short_ways(pool: GuardedPool) -> None:
    assert await pool.execute("CREATE TABLE short (n int)") == "CREATE TABLE"
    await pool.executemany("INSERT INTO short VALUES ($1)", [(1,), (2,), (3,)])
    assert [row["n"] for row in await pool.fetch("SELECT n FROM short WHERE n > $1 ORDER BY n", 1)] == [2, 3]
    row = await pool.fetchrow("SELECT n, n * 2 AS double FROM short WHERE n = $1", 2)
    assert row is not None
    assert dict(row) == {"n": 2, "double": 4}
    assert await pool.fetchrow("SELECT n FROM short WHERE n = 9") is None
    assert await pool.fetchval("SELECT n, n * 2 FROM short WHERE n = $1", 2, column=1) == 4
    assert await pool.execute("DELETE FROM short WHERE n < $1", 3) == "DELETE 2"
    await pool.ping()


@pytest.mark.parametrize("way", ["fetch", "fetchrow", "fetchval", "execute"])
async def test_a_timeout_of_the_short_ways_is_the_statements(pool: GuardedPool, way: str) -> None:
    with pytest.raises(TimeoutError):
        await getattr(pool, way)("SELECT pg_sleep(10)", timeout=0.02)
    with pytest.raises(TimeoutError):
        await pool.executemany("SELECT pg_sleep($1)", [(10.0,)], timeout=0.02)
    assert await pool.fetchval("SELECT 1") == 1


async def test_the_command_timeout_bounds_a_statement(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, command_timeout_ms=30)) as pool:
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(10)")


async def test_a_transaction_is_committed_or_rolled_back(pool: GuardedPool) -> None:
    await pool.execute("CREATE TABLE account (n int)")
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO account VALUES (1)")
    with suppress(KeyError):
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO account VALUES (2)")
            raise KeyError
    assert await pool.fetchval("SELECT sum(n) FROM account") == 1
    async with pool.transaction(isolation="serializable", readonly=True, deferrable=True, timeout=1.0) as connection:
        assert await connection.fetchval("SHOW transaction_isolation") == "serializable"
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("INSERT INTO account VALUES (3)")


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_what_a_block_leaves_open_is_not_handed_on(url: str, session_reset: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        await pool.execute("CREATE TABLE left_open (n int)")
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO left_open VALUES (1)")
            if session_reset == "always":
                await transaction.rollback()
        assert await pool.fetchval("SELECT count(*) FROM left_open") == 0


@pytest.mark.parametrize(("session_reset", "seen"), [("always", "UTC"), ("never", "Asia/Kathmandu")])
async def test_the_reset_query_runs_when_it_should(url: str, session_reset: str, seen: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        await pool.execute("SET timezone = 'Asia/Kathmandu'")
        assert await pool.fetchval("SHOW timezone") == seen


async def test_an_error_of_the_block_passes_untouched(pool: GuardedPool) -> None:
    await pool.execute("CREATE TABLE one (n int PRIMARY KEY)")
    for _ in range(5):
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await pool.execute("INSERT INTO one VALUES (1), (1)")
        assert type(caught.value) is asyncpg.UniqueViolationError
        error = KeyError("mine")
        with pytest.raises(KeyError) as raised:
            async with pool.acquire():
                raise error
        assert raised.value is error
    assert pool.stats()["circuit"] == "closed"


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_session_lost_in_a_block_is_replaced_for_the_next(
    url: str, observer: Observer, role: str, session_reset: str
) -> None:
    heard: list[Event] = []
    settings = DatabaseSettings(url=url, session_reset=session_reset)
    async with GuardedPool(settings, on_event=heard.append) as pool:
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await asyncio.gather(pool.execute("SELECT pg_sleep(10)"), _terminate(observer, role))
        assert await pool.fetchval("SELECT 1") == 1
        assert [event.name for event in heard] == ["connection_opened", "connection_closed", "connection_opened"]
        assert heard[1].reason == "lost"
        assert_accounts_balance(pool)


async def _terminate(observer: Observer, role: str) -> None:
    while not [row for row in await observer.sessions(user=role) if "pg_sleep" in row["query"]]:
        pass
    await observer.terminate(user=role)


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_nothing_of_a_block_works_after_it(url: str, session_reset: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        async with pool.acquire() as connection:
            statement = await connection.prepare("SELECT 1")
            assert await statement.fetchval() == 1
            async with connection.transaction():
                cursor = await connection.cursor("SELECT generate_series(1, 10)")
                assert await cursor.fetchrow() == (1,)
            transaction = connection.transaction()
        for use in (
            lambda: connection.fetchval("SELECT 1"),
            lambda: connection.execute("SELECT 1"),
            statement.fetchval,
            cursor.fetchrow,
            transaction.start,
        ):
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await use()
        async with pool.acquire() as another:
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await connection.fetchval("SELECT 1")
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await statement.fetchval()
            assert await another.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_listener_left_behind_is_told_and_not_handed_on(url: str, session_reset: str) -> None:
    heard: list[object] = []
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        with pytest.warns(asyncpg.InterfaceWarning, match="listener"):
            async with pool.acquire() as connection:
                await connection.add_listener("news", lambda *news: heard.append(news))
        async with pool.acquire() as connection:
            assert await connection.fetch("SELECT pg_listening_channels()") == []
            await connection.execute("NOTIFY news")
        await at_rest(pool)
    assert heard == []


async def test_a_listener_left_behind_is_an_error_where_warnings_are_errors(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with pytest.raises(asyncpg.InterfaceWarning, match="listener"):
            async with pool.acquire() as connection:
                await connection.add_listener("news", lambda *_: None)
        assert await pool.fetch("SELECT pg_listening_channels()") == []
        assert pool.stats()["connects"] == 1


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
async def test_a_session_in_whose_driver_it_may_have_struck_is_not_lent_again(
    url: str, error: type[Exception], observer: Observer, role: str
) -> None:
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool:
        with suppress(error):
            async with pool.acquire() as connection:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                raise error
        assert await pool.fetchval("SELECT pg_backend_pid()") != pid
        assert await observer.count(user=role) == 1


async def test_an_acquisition_serves_one_block_at_a_time(pool: GuardedPool) -> None:
    acquisition = pool.acquire()
    async with acquisition:
        with pytest.raises(RuntimeError, match="acquire"):
            async with acquisition:
                pass
    async with acquisition as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert_accounts_balance(pool)


async def test_a_new_pool_touches_neither_network_nor_environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    pool = GuardedPool()
    assert repr(pool) == "<GuardedPool without a session>"
    monkeypatch.setenv("DATABASE_URL", url)
    assert await pool.fetchval("SELECT 1") == 1
    assert pool.settings.url.get_secret_value() == url
    await pool.close()


async def test_a_wrong_setting_shows_in_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = GuardedPool()
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "0")
    for use in (pool.ping, pool.acquire().__aenter__, pool.__aenter__):
        with pytest.raises(ConfigurationError, match="LAMBDA_DATABASE_POOL_MAX"):
            await use()
    await pool.close()


@pytest.mark.parametrize(
    "wrong",
    ["postgresql://someone:s3cr3t-word@h/d", {"url": "postgresql://someone:s3cr3t-word@h/d"}, DatabaseSettings, ""],
    ids=["url", "mapping", "class", "empty"],
)
async def test_what_are_no_settings_are_refused_in_the_first_call_with_what_to_pass(wrong: Any) -> None:
    pool = GuardedPool(wrong)  # at the top of a Lambda module that would end each start of the process
    for use in (pool.ping, pool.acquire().__aenter__, pool.__aenter__):
        with pytest.raises(ConfigurationError, match=r"GuardedPool\(DatabaseSettings\(url=") as caught:
            await use()
        assert "s3cr3t-word" not in str(caught.value)
    for look in (pool.stats, lambda: pool.settings):
        with pytest.raises(ConfigurationError, match="to read the environment"):
            look()
    await pool.close()


async def test_stats_say_what_there_is(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url, pool_max=2))
    assert pool.stats()["connects"] == 0
    async with pool.acquire(), pool.acquire():
        waiting = asyncio.create_task(pool.ping())
        await asyncio.sleep(0)
        stats = pool.stats()
        assert (stats["lent"], stats["idle"], stats["waiting"]) == (2, 0, 1)
        assert (stats["pool_max"], stats["circuit"], stats["connects"]) == (2, "closed", 2)
        assert repr(pool) == "<GuardedPool circuit=closed idle=0 lent=2 waiting=1 pool_max=2>"
    await waiting
    await at_rest(pool)
    stats = pool.stats()
    assert (stats["requests"], stats["acquired"], stats["idle"]) == (3, 3, 2)
    assert stats["wait_ms"] > 0
    assert_accounts_balance(pool)
    await pool.close()
    assert repr(pool) == "<GuardedPool closed>"
    assert_accounts_balance(pool)


async def test_a_closed_pool_says_so(url: str, observer: Observer, role: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    async with pool as entered:
        assert entered is pool
        await pool.ping()
        assert await observer.count(user=role) == 1
    assert await observer.count(user=role) == 0
    for use in (pool.ping, pool.acquire().__aenter__, pool.__aenter__):
        with pytest.raises(PoolClosedError):
            await use()
    await pool.close()
    unused = GuardedPool()
    await unused.close()
    with pytest.raises(PoolClosedError):
        await unused.ping()


async def test_a_pool_that_is_disconnected_connects_again(url: str, observer: Observer, role: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    await pool.disconnect()
    for _ in range(2):
        await pool.ping()
        await pool.disconnect()
        assert await observer.count(user=role) == 0
    await pool.ping()
    await pool.close()
    assert_accounts_balance(pool)


async def test_listeners_hear_what_happens(url: str) -> None:
    first: list[Event] = []
    second: list[Event] = []
    pool = GuardedPool(DatabaseSettings(url=url), on_event=[first.append])
    pool.events.add(second.append)
    await pool.ping()
    await pool.close()
    assert [event.name for event in first] == ["connection_opened", "connection_closed"]
    assert first == second
    assert first[0].seconds > 0
    assert first[1].reason == "close"


async def test_nothing_is_logged_and_nothing_secret_is_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncdb_guard")
    secret = url.replace("@", ":hunter2@")
    async with GuardedPool(DatabaseSettings(url=secret)) as pool:
        await pool.ping()
        assert "hunter2" not in repr(pool) + repr(pool.settings) + str(pool.stats())
        assert "127.0.0.1" not in repr(pool) + repr(pool.settings)
    assert caplog.records == []


async def committed_by_hand(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        await connection.transaction().start()
        await connection.execute("COMMIT")


async def begun_beside_a_statement(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(0.05)"))
        await asyncio.sleep(0.01)
        with suppress(asyncpg.InterfaceError):
            await connection.transaction().start()
        await running


@pytest.mark.parametrize("knobs", [{"session_reset": "always"}, {"session_reset": "never"}, {"proxy_profile": True}])
@pytest.mark.parametrize("misuse", [committed_by_hand, begun_beside_a_statement])
async def test_a_transaction_that_asyncpg_only_believes_in_is_not_handed_on(
    url: str, knobs: dict[str, Any], misuse: Callable[[GuardedPool], Awaitable[None]]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url, **knobs)) as pool:
        await misuse(pool)
        for _ in range(2):
            async with pool.transaction() as connection:
                assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_connection_with_a_changed_type_codec_is_not_lent_again(url: str, session_reset: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        async with pool.acquire() as connection:
            await connection.set_type_codec("json", schema="pg_catalog", encoder=repr, decoder=lambda text: None)
            assert await connection.fetchval("SELECT json '1'") is None
        assert await pool.fetchval("SELECT json '1'") == "1"
        assert pool.stats()["connects"] == 2


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_query_logger_left_behind_hears_nothing_of_the_next_borrower(url: str, session_reset: str) -> None:
    heard: list[object] = []
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        async with pool.acquire() as connection:
            connection.add_query_logger(heard.append)
        await pool.fetchval("SELECT $1::text", "somebody else's")
        await asyncio.sleep(0)
    assert heard == []


def test_the_first_row_needs_no_part_that_a_setting_turns_on(url: str) -> None:
    said = run(
        """
        import asyncio, os, sys
        from asyncdb_guard import GuardedPool

        async def first_row():
            async with GuardedPool() as pool:
                return await pool.fetchval("SELECT 1")

        print(asyncio.run(first_row()))
        parts = ("bulletin.board", "connect.aws", "connect.redis", "connect.slow_statements", "cli", "fleet", "testing")
        print([part for part in parts if f"asyncdb_guard.{part}" in sys.modules])
        """,
        LAMBDA_DATABASE_URL=url,
    )
    assert said == "1\n[]\n"
