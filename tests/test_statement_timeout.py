"""A statement that our bound ended says so by name, whichever way it was run."""

from __future__ import annotations

import asyncio
import io
import pickle
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import Connection, DatabaseSettings, GuardedPool, GuardError, StatementTimeoutError
from asyncdb_guard.connect.lent_statements import Bounds, timed_out

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

SLEEP = "SELECT pg_sleep(9)"
TIMEOUT = 0.02


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool:
        await pool.execute("CREATE TABLE item (a int)")
        yield pool
        assert pool.stats()["circuit"] == "closed", "a shorter bound of the caller's own is nobody's failure"


POOLS: dict[str, Callable[[GuardedPool], Awaitable[object]]] = {
    "fetch": lambda pool: pool.fetch(SLEEP, timeout=TIMEOUT),
    "fetchrow": lambda pool: pool.fetchrow(SLEEP, timeout=TIMEOUT),
    "fetchval": lambda pool: pool.fetchval(SLEEP, timeout=TIMEOUT),
    "execute": lambda pool: pool.execute(SLEEP, timeout=TIMEOUT),
    "executemany": lambda pool: pool.executemany("SELECT pg_sleep($1)", [(9.0,)], timeout=TIMEOUT),
}


@pytest.mark.parametrize("way", POOLS)
async def test_from_the_pools_methods(pool: GuardedPool, way: str) -> None:
    with pytest.raises(StatementTimeoutError, match=r"timeout= of 0\.02 s") as caught:
        await POOLS[way](pool)
    assert isinstance(caught.value, GuardError)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout == TIMEOUT
    assert type(caught.value.__cause__) is TimeoutError


async def slow_source() -> AsyncIterator[bytes]:
    yield b"1\n"
    await asyncio.sleep(9)


async def slow_statement(connection: Connection, way: str) -> None:
    statement = await connection.prepare("SELECT pg_sleep(9) FROM generate_series(1, $1::int)")
    if way == "fetchmany":
        await statement.fetchmany([(1,)], timeout=TIMEOUT)
    elif way == "executemany":
        await statement.executemany([(1,)], timeout=TIMEOUT)
    else:
        await getattr(statement, way)(1, timeout=TIMEOUT)


async def iterate(cursor: Any) -> None:
    async for _ in cursor:
        pass


async def slow_cursor(connection: Connection, way: str) -> None:
    async with connection.transaction():
        if way == "iterator":
            await iterate(connection.cursor(SLEEP, timeout=TIMEOUT))
        elif way == "statement":
            await iterate((await connection.prepare(SLEEP)).cursor(timeout=TIMEOUT))
        elif way == "open":
            await connection.cursor("SELECT * FROM item", timeout=TIMEOUT)
        else:
            cursor = await (await connection.prepare(SLEEP)).cursor()
            await getattr(cursor, way)(*([] if way == "fetchrow" else [1]), timeout=TIMEOUT)


CONNECTIONS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "fetch": lambda connection: connection.fetch(SLEEP, timeout=TIMEOUT),
    "fetchmany": lambda connection: connection.fetchmany("SELECT pg_sleep($1)", [(9.0,)], timeout=TIMEOUT),
    "copy_from_query": lambda connection: connection.copy_from_query(SLEEP, output=io.BytesIO(), timeout=TIMEOUT),
    "copy_to_table": lambda connection: connection.copy_to_table("item", source=slow_source(), timeout=TIMEOUT),
    **{
        f"statement.{way}": lambda connection, way=way: slow_statement(connection, way)  # type: ignore[misc]
        for way in ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany")
    },
    **{
        f"cursor.{way}": lambda connection, way=way: slow_cursor(connection, way)  # type: ignore[misc]
        for way in ("iterator", "statement", "fetch", "fetchrow", "forward")
    },
}


@pytest.mark.parametrize("way", CONNECTIONS)
async def test_from_the_connections_methods(pool: GuardedPool, way: str) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(StatementTimeoutError, match=r"timeout= of 0\.02 s"):
            await CONNECTIONS[way](connection)


WAITING: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "prepare": lambda connection: connection.prepare("SELECT * FROM item", timeout=TIMEOUT),
    "cursor": lambda connection: slow_cursor(connection, "open"),
    "copy_records": lambda connection: connection.copy_records_to_table("item", records=[(1,)], timeout=TIMEOUT),
    "copy_from_table": lambda connection: connection.copy_from_table("item", output=io.BytesIO(), timeout=TIMEOUT),
}


@pytest.mark.parametrize("way", WAITING)
async def test_while_it_waits_for_a_lock(server: Cluster, pool: GuardedPool, role: str, way: str) -> None:
    async with (
        pool.acquire() as connection,
        server_lock(server, role, "SHARE" if way == "copy_records" else "ACCESS EXCLUSIVE"),
    ):
        with pytest.raises(StatementTimeoutError):
            await WAITING[way](connection)


class server_lock:  # noqa: N801
    """Nobody else can write to the table `item`, or even read it."""

    def __init__(self, server: Cluster, role: str, mode: str) -> None:
        self._url, self._table, self._mode = server.url(), f"{role}.item", mode

    async def __aenter__(self) -> None:
        self._connection = await asyncpg.connect(self._url)
        await self._connection.execute(f"BEGIN; LOCK TABLE {self._table} IN {self._mode} MODE")

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def test_from_the_end_of_a_transaction(url: str, role: str) -> None:
    """A COMMIT can take long: deferred constraints are checked then."""
    async with GuardedPool(DatabaseSettings(url=url, command_timeout_ms=60, breaker_fail_max=1)) as pool:
        await pool.execute(
            f"CREATE TABLE late (a int); CREATE FUNCTION {role}.wait() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(9); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late INITIALLY DEFERRED FOR EACH ROW"
            f" EXECUTE FUNCTION {role}.wait()"
        )
        with pytest.raises(StatementTimeoutError, match=r"0\.06 s.*LAMBDA_DATABASE_COMMAND_TIMEOUT_MS") as caught:
            async with pool.transaction() as connection:
                await connection.execute("INSERT INTO late VALUES (1)")
        assert caught.value.timeout == 0.06
        assert pool.stats()["circuit"] == "open", "a statement that outlived COMMAND_TIMEOUT is a failure"


async def test_where_the_server_kept_the_bound(pool: GuardedPool) -> None:
    """As it does for a process that was frozen meanwhile."""
    async with pool.acquire() as connection:
        await connection.execute("SET statement_timeout = 20")
        connection.bounds = Bounds(command=3.0, server=0.01)  # as if that had come from the pool
        statement = await connection.prepare(SLEEP)
        for run in (lambda: connection.fetch(SLEEP), statement.fetch):
            with pytest.raises(StatementTimeoutError, match=r"3\.00 s.*LAMBDA_DATABASE_COMMAND_TIMEOUT_MS") as caught:
                await run()
            assert isinstance(caught.value.__cause__, asyncpg.QueryCanceledError)


async def test_not_what_somebody_else_ended(server: Cluster, pool: GuardedPool, role: str) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SET statement_timeout = 10")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.fetch(SLEEP)
        statement = await connection.prepare(SLEEP)
        with pytest.raises(asyncpg.QueryCanceledError):
            await statement.fetch()
        async with connection.transaction():
            with pytest.raises(asyncpg.QueryCanceledError):
                await iterate(connection.cursor(SLEEP))
        async with connection.transaction(), server_lock(server, role, "ACCESS EXCLUSIVE"):
            with pytest.raises(asyncpg.QueryCanceledError):
                await connection.cursor("SELECT * FROM item")


def test_not_a_timeout_of_the_borrowers_own() -> None:
    """As a callback may raise it that asyncpg calls."""
    assert timed_out(TimeoutError("of a download"), (10.0, 1000.0), (20.0, 1010.0), Bounds(3.0, 3.5)) is None


async def test_not_one_that_the_source_of_a_copy_raised(url: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        raise TimeoutError("of a download")
        yield b""

    async with GuardedPool(DatabaseSettings(url=url)) as pool, pool.acquire() as connection:
        await connection.execute("CREATE TABLE item (a int)")
        with pytest.raises((TimeoutError, asyncpg.QueryCanceledError)) as caught:  # asyncpg loses the original
            await connection.copy_to_table("item", source=source())
        assert type(caught.value) is not StatementTimeoutError


def test_the_server_ends_only_what_outlived_its_bound() -> None:
    canceled, begin = asyncpg.QueryCanceledError("canceling statement"), (10.0, 1000.0)
    bounds = Bounds(3.0, 3.5)
    assert timed_out(canceled, begin, (13.4, 1003.4), bounds) is None
    assert timed_out(canceled, begin, (10.1, 1003.5), bounds) is not None  # frozen meanwhile
    assert timed_out(canceled, begin, (20.0, 1010.0), Bounds(3.0, None)) is None
    too_slow = asyncpg.QueryCanceledError("COPY from stdin failed: TimeoutError")
    assert timed_out(too_slow, begin, (12.9, 1002.9), bounds) is None
    assert timed_out(too_slow, begin, (13.0, 1003.0), bounds) is not None


def test_it_can_be_pickled_and_is_safe_to_show() -> None:
    error = StatementTimeoutError("A statement took longer than 3.00 s.", timeout=3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.timeout) == (str(error), 3.0)
