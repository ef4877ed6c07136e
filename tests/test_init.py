"""`init=`: once for each new session, before anybody has it; what it sets stays, what a borrower sets does not."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    Connection,
    DatabaseSettings,
    GuardedPool,
)
from tests.support.bound import allow, assert_accounts_balance, at_rest

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
    from tests.support.eventually import Eventually

VECTOR = "SELECT '[1,2]'::jsonb"


async def decode_json(connection: Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


def pool_for(url: str, init: Any, **values: Any) -> GuardedPool:
    return GuardedPool(DatabaseSettings(url=url, **values), init=init)


async def test_it_runs_once_for_each_session_before_anybody_has_it(url: str) -> None:
    pids: list[int] = []

    async def init(connection: Connection) -> None:
        assert isinstance(connection, Connection)
        assert await connection.fetchval("SELECT 1") == 1
        pids.append(connection.get_server_pid())

    async with pool_for(url, init, pool_max=2) as pool:
        for _ in range(3):
            async with pool.acquire() as one, pool.acquire() as other:
                assert {one.get_server_pid(), other.get_server_pid()} == set(pids)
        assert len(pids) == 2


async def test_a_borrower_cannot_tell_who_was_there_before(url: str) -> None:
    async with pool_for(url, decode_json) as pool:
        assert await pool.fetchval(VECTOR) == [1, 2]
        async with pool.acquire() as connection:
            await connection.set_type_codec("jsonb", encoder=str, decoder=len, schema="pg_catalog")
            assert await connection.fetchval(VECTOR) == len("[1, 2]")
        assert await pool.fetchval(VECTOR) == [1, 2]
        assert pool.stats()["connects"] == 2


@pytest.mark.parametrize("cleaned", [True, False])
async def test_what_it_sets_survives_the_reset(server: Cluster, url: str, role: str, cleaned: bool) -> None:
    server.psql(f"CREATE ROLE {role}_reader; GRANT {role}_reader TO {role}; GRANT USAGE ON SCHEMA {role} TO PUBLIC")

    async def init(connection: Connection) -> None:
        await connection.execute("SET search_path = pg_catalog, \"it's\"; SET app.tenant = 'a\\b'")
        await connection.execute("SELECT set_config($1, $2, false)", "app.region", "it's")
        await connection.execute(f"SET work_mem = '5MB'; SET ROLE {role}_reader")

    async with pool_for(url, init) as pool:
        for _ in range(2):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SHOW search_path") == 'pg_catalog, "it\'s"'
                assert await connection.fetchval("SHOW app.tenant") == "a\\b"
                assert await connection.fetchval("SHOW app.region") == "it's"
                assert await connection.fetchval("SHOW work_mem") == "5MB"
                assert await connection.fetchval("SELECT current_user::text") == f"{role}_reader"
                await connection.execute("SET search_path = public; SET app.tenant = ''; RESET ROLE; SET jit = off")
                if cleaned:  # with a transaction left open, the reset has more to do
                    await connection.execute("BEGIN")
        assert await pool.fetchval("SHOW jit") == "on"
        assert pool.stats()["connects"] == 1


async def test_a_session_user_survives_it_too(server: Cluster, role: str) -> None:
    async def init(connection: Connection) -> None:
        await connection.execute(f"SET SESSION AUTHORIZATION {role}")

    async with pool_for(server.url(), init) as pool:
        for statement in ("SELECT 1", "SET SESSION AUTHORIZATION DEFAULT", "SELECT 1"):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SELECT session_user::text") == role
                await connection.execute(statement)
        assert pool.stats()["connects"] == 1


async def test_the_reset_of_what_it_set_costs_no_round_trip(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    async def init(connection: Connection) -> None:
        await connection.execute("SET work_mem = '5MB'")

    async with pool_for(url_via_tcp_proxy, init) as pool:
        await pool.fetchval("SELECT 1")
        await at_rest(pool)
        before = len(proxy.statements)
        await pool.execute("SELECT 1")
        await pool.execute("SELECT 1")
        await at_rest(pool)
        assert len(proxy.statements) == before + 4


async def test_a_longer_timeout_returns_to_the_bound_that_it_set(url: str) -> None:
    async def init(connection: Connection) -> None:
        await connection.execute("SET statement_timeout = 1500")

    async with pool_for(url, init) as pool, pool.acquire() as connection:
        assert await connection.fetchval("SHOW statement_timeout", timeout=2.0) == "2500ms"
        assert await connection.fetchval("SHOW statement_timeout") == "1500ms"


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_its_listeners_hear_whatever_borrowers_do(server: Cluster, url: str, session_reset: str) -> None:
    heard: list[str] = []
    noticed: list[str] = []

    def listener(_connection: object, _pid: int, _channel: str, payload: str) -> None:
        heard.append(payload)

    def log(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        noticed.append(str(message))

    async def init(connection: Connection) -> None:
        await connection.add_listener('my "channel"', listener)
        connection.add_log_listener(log)

    async with pool_for(url, init, session_reset=session_reset) as pool:
        async with pool.acquire() as connection:
            await connection.remove_listener('my "channel"', listener)
            connection.remove_log_listener(log)
        for turn in ("first", "second"):
            async with pool.acquire() as connection:
                server.psql(f"""SELECT pg_notify('my "channel"', '{turn}')""")
                await connection.execute("DO $$ BEGIN RAISE NOTICE 'loud'; END $$")
            await at_rest(pool)
        assert heard == ["first", "second"]
        assert [message for message in noticed if "loud" in message] == ["PostgresLogMessage: loud"] * 2
        # without a reset, nobody can say what is still listened to
        assert pool.stats()["connects"] == (1 if session_reset == "always" else 2)


async def test_what_it_raises_reaches_the_caller_and_ends_the_session(
    url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    class OwnError(Exception):
        pass

    failing = True

    async def init(connection: Connection) -> None:
        if failing:
            raise OwnError("as it is")

    async with pool_for(url, init, breaker_fail_max=1) as pool:
        with pytest.raises(OwnError, match="as it is"):
            await pool.ping()
        assert await observer.count(user=role) == 0
        failing = False
        await pool.ping()
        await eventually(lambda: pool.stats()["lent"] == 0)
        assert_accounts_balance(pool)
        assert (pool.stats()["failures"], pool.stats()["connect_failures"], pool.stats()["circuit"]) == (1, 1, "closed")


async def test_a_statement_that_the_server_refuses_is_an_answer(url: str) -> None:
    async def init(connection: Connection) -> None:
        await connection.execute("SELECT * FROM nowhere")

    async with pool_for(url, init, breaker_fail_max=1) as pool:
        for _ in range(2):
            with pytest.raises(asyncpg.UndefinedTableError):
                await pool.ping()


async def test_a_session_that_is_lost_in_it_is_a_failure(url: str, role: str, observer: Observer) -> None:
    async def init(connection: Connection) -> None:
        await observer.terminate(user=role)
        await connection.execute("SELECT 1")

    async with pool_for(url, init, breaker_fail_max=1) as pool:
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await pool.ping()
        with pytest.raises(CircuitOpenError):
            await pool.ping()


async def test_it_is_inside_the_bound_on_a_connect(server: Cluster, url: str, role: str, observer: Observer) -> None:
    allow(server, url, 1)
    hung: list[bool] = []

    async def init(connection: Connection) -> None:
        if not hung:
            hung.append(True)
            try:
                await connection.execute("SELECT pg_sleep(60)")
            finally:
                await asyncio.sleep(0)

    async with pool_for(url, init, connect_timeout_ms=150, breaker_fail_max=10) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        async with pool.acquire(timeout=2.0) as connection:
            assert await observer.count(user=role) == 1
            assert await connection.fetchval("SELECT 1") == 1


async def test_it_may_go_on_after_a_cancellation_without_a_trace(url: str, eventually: Eventually) -> None:
    over: list[bool] = []

    async def init(connection: Connection) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            over.append(True)
            raise ValueError("nobody asks any more") from None

    async with pool_for(url, init, connect_timeout_ms=60) as pool:
        with pytest.raises(AcquireTimeoutError):
            await pool.ping()
        await eventually(lambda: over)


async def test_a_caller_that_leaves_takes_nothing_with_it(url: str, role: str, observer: Observer) -> None:
    began = asyncio.Event()

    async def init(connection: Connection) -> None:
        began.set()
        await connection.execute("SELECT pg_sleep(0.05)")

    async with pool_for(url, init) as pool:
        caller = asyncio.create_task(pool.ping())
        await began.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await pool.ping()
        assert pool.stats()["connects"] == 1
        assert await observer.count(user=role) == 1


async def test_a_cancellation_of_its_own_making_is_its_error(url: str) -> None:
    async def init(connection: Connection) -> None:
        raise asyncio.CancelledError

    async with pool_for(url, init) as pool:
        with pytest.raises(asyncio.CancelledError):
            await pool.ping()


async def test_nothing_goes_on_behind_an_open_circuit(
    url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    held, began = asyncio.Event(), asyncio.Event()

    async def init(connection: Connection) -> None:
        if held.is_set():
            began.set()
            await asyncio.Event().wait()

    async with pool_for(url, init, pool_max=2, breaker_fail_max=1, command_timeout_ms=250) as pool:

        async def trip() -> None:
            async with pool.acquire() as connection:
                held.set()
                await began.wait()
                assert await observer.count(user=role) == 2
                await connection.execute("SELECT pg_sleep(9)")

        first = asyncio.create_task(trip())
        await held.wait()
        second = asyncio.create_task(pool.ping())
        with pytest.raises(TimeoutError):
            await first
        with pytest.raises(CircuitOpenError):
            await second
        await at_rest(pool)
        await eventually(lambda: pool.stats()["connect_failures"] == 0)
        assert await observer.count(user=role) == 1


async def test_an_error_that_keeps_the_pool_from_growing_is_nobodys(url: str) -> None:
    async def init(connection: Connection) -> None:
        if pool.stats()["connects"]:
            raise ValueError("secret")

    async with pool_for(url, init, pool_max=2) as pool:
        async with pool.acquire():
            with pytest.raises(AcquireTimeoutError, match=r"init= raised ValueError\.") as caught:
                await pool.acquire(timeout=0.06).__aenter__()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("statement", ["BEGIN", "SELECT pg_sleep(0.2)"])
async def test_it_must_end_what_it_began(url: str, statement: str) -> None:
    running: list[asyncio.Task[Any]] = []

    async def init(connection: Connection) -> None:
        if statement == "BEGIN":
            await connection.execute(statement)
        else:
            running.append(asyncio.create_task(connection.execute(statement)))
            await asyncio.sleep(0)

    async with pool_for(url, init) as pool:
        with pytest.raises((ConfigurationError, asyncpg.InterfaceError)):
            await pool.ping()
    await asyncio.gather(*running, return_exceptions=True)


async def test_its_connection_ends_with_it(url: str) -> None:
    kept: list[Connection] = []

    async def init(connection: Connection) -> None:
        kept.append(connection)

    async with pool_for(url, init) as pool:
        await pool.ping()
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await kept[0].fetchval("SELECT 1")


async def test_what_is_no_async_function_is_told(url: str) -> None:
    def generate(connection: Connection) -> Any:
        yield

    for wrong in (generate, 5):
        with pytest.raises(TypeError, match="async def init"):
            GuardedPool(init=wrong)  # type: ignore[arg-type]
    async with pool_for(url, lambda connection: None) as pool:
        with pytest.raises(TypeError, match="async def init"):
            await pool.ping()


@pytest.mark.parametrize("statement", ["SET work_mem = '5MB'", "SELECT 1; listen channel"])
async def test_through_a_pooler_it_can_set_codecs_only(url_via_tcp_proxy: str, proxy: TcpProxy, statement: str) -> None:
    settings = {"url": url_via_tcp_proxy, "proxy_profile": True}
    async with pool_for(init=decode_json, **settings) as pool:
        assert await pool.fetchval(VECTOR) == [1, 2]
        async with pool.transaction() as connection:
            await connection.execute("SET LOCAL work_mem = '5MB'")
    assert proxy.named_statements == []
    assert [sql for sql in proxy.statements if "set_config" in sql or "pg_settings" in sql] == []

    async def init(connection: Connection) -> None:
        await connection.execute(statement)

    async with pool_for(init=init, **settings) as pool:
        with pytest.raises(ConfigurationError, match="transaction pooler"):
            await pool.ping()
