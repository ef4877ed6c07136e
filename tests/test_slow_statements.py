"""The opt-in log of slow statements: duration, place and text, and never an argument."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import Connection, DatabaseSettings, GuardedPool, StatementTimeoutError
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.connect.slow_statements import TEXT_MAX

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

ARGUMENT = "ada@example.com"
SLEEP = "SELECT $1::text, pg_sleep(0.02)"
FUNCTION = "this_very_test"


def pool_for(url: str, **values: Any) -> GuardedPool:
    return GuardedPool(DatabaseSettings(url=url, **({"slow_statement_ms": 15} | values)))


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with pool_for(url) as pool:
        async with pool.acquire() as connection:
            await connection.execute("CREATE TABLE item (a text)")
        yield pool


async def slow_source() -> AsyncIterator[bytes]:
    yield f"{ARGUMENT}\n".encode()
    await asyncio.sleep(0.02)


async def slow_records() -> AsyncIterator[tuple[str]]:
    yield (ARGUMENT,)
    await asyncio.sleep(0.02)


async def iterate(cursor: Any) -> None:
    async for _ in cursor:
        pass


async def statement(connection: Connection, way: str) -> None:
    prepared = await connection.prepare(SLEEP)
    if way in {"fetchmany", "executemany"}:
        await getattr(prepared, way)([(ARGUMENT,)])
    elif way == "explain":
        await prepared.explain(ARGUMENT, analyze=True)
    else:
        await getattr(prepared, way)(ARGUMENT)


async def cached(connection: Connection) -> None:
    await (await connection.prepare_cached(SLEEP)).fetch(ARGUMENT)


async def cursor(connection: Connection, way: str) -> None:
    async with connection.transaction():
        if way == "iterator":
            await iterate(connection.cursor(SLEEP, ARGUMENT))
        elif way == "statement":
            await iterate((await connection.prepare(SLEEP)).cursor(ARGUMENT))
        else:
            opened = await connection.cursor(SLEEP, ARGUMENT)
            await getattr(opened, way)(*([] if way == "fetchrow" else [1]))


WAYS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    **{
        way: lambda connection, way=way: getattr(connection, way)(SLEEP, ARGUMENT)  # type: ignore[misc]
        for way in ("execute", "fetch", "fetchrow", "fetchval")
    },
    **{
        way: lambda connection, way=way: getattr(connection, way)(SLEEP, [(ARGUMENT,)])  # type: ignore[misc]
        for way in ("executemany", "fetchmany")
    },
    "by name": lambda connection: connection.fetchmany(query=SLEEP, args=[(ARGUMENT,)]),
    "copy_from_query": lambda connection: connection.copy_from_query(SLEEP, ARGUMENT, output=io.BytesIO()),
    **{
        f"statement.{way}": lambda connection, way=way: statement(connection, way)  # type: ignore[misc]
        for way in ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany", "explain")
    },
    "cached": cached,
    **{
        f"cursor.{way}": lambda connection, way=way: cursor(connection, way)  # type: ignore[misc]
        for way in ("iterator", "statement", "fetch", "fetchrow", "forward")
    },
}


def the_line(caplog: pytest.LogCaptureFixture, text: str, function: str = FUNCTION) -> logging.LogRecord:
    told = [record for record in caplog.records if record.statement == text]  # type: ignore[attr-defined]
    assert told
    record = max(told, key=lambda one: one.seconds)  # type: ignore[attr-defined]  # on a busy machine a quick one, too
    assert record.levelno == logging.WARNING
    line = record.getMessage()
    assert line.endswith(f"longer than LAMBDA_DATABASE_SLOW_STATEMENT_MS: {text}")
    assert f"test_slow_statements.py:{record.where.split(':')[1].split()[0]} in {function}" in line  # type: ignore[attr-defined]
    assert 0.015 <= record.seconds < 2  # type: ignore[attr-defined]
    assert ARGUMENT not in line + repr(vars(record))
    return record


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_run_a_statement(pool: GuardedPool, way: str, caplog: pytest.LogCaptureFixture) -> None:
    async def this_very_test() -> None:
        async with pool.acquire() as connection:
            await WAYS[way](connection)

    await this_very_test()
    function = {"statement": "statement", "cursor": "cursor", "cached": "cached"}.get(way.partition(".")[0], FUNCTION)
    if way in {"cursor.iterator", "cursor.statement"}:
        function = "iterate"
    record = the_line(caplog, SLEEP, function)
    assert "A statement took 0." in record.getMessage()


POOLS: dict[str, tuple[str, Callable[[GuardedPool], Awaitable[object]]]] = {
    **{
        way: (SLEEP, lambda pool, way=way: getattr(pool, way)(SLEEP, ARGUMENT))  # type: ignore[misc]
        for way in ("execute", "fetch", "fetchrow", "fetchval")
    },
    **{
        way: (SLEEP, lambda pool, way=way: getattr(pool, way)(SLEEP, [(ARGUMENT,)]))  # type: ignore[misc]
        for way in ("executemany", "fetchmany")
    },
    "copy_to_table": ("COPY item FROM STDIN", lambda pool: pool.copy_to_table("item", source=slow_source())),
    "copy_records": ("COPY item FROM STDIN", lambda pool: pool.copy_records_to_table("item", records=slow_records())),
}


@pytest.mark.parametrize("way", POOLS)
async def test_the_pools_methods(pool: GuardedPool, way: str, caplog: pytest.LogCaptureFixture) -> None:
    text, call = POOLS[way]

    async def this_very_test() -> None:
        await call(pool)

    await this_very_test()
    the_line(caplog, text)


async def test_a_table_that_is_locked(
    server: Cluster, pool: GuardedPool, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = await server.connect()
    try:
        async with blocker.transaction():
            await blocker.execute(f"LOCK TABLE {role}.item")
            for call in (
                pool.copy_from_table("item", output=io.BytesIO(), timeout=0.02),
                prepare(pool),
                open_cursor(pool),
            ):
                with pytest.raises(StatementTimeoutError):
                    await call
    finally:
        await blocker.close()
    lines = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert [line.rpartition("MS: ")[2] for line in lines] == ["COPY item TO STDOUT", "TABLE item", "TABLE item"]
    assert all("A statement failed (asyncdb_guard.errors.StatementTimeoutError) after 0.0" in line for line in lines)


async def prepare(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        await connection.prepare("TABLE item", timeout=0.02)


async def open_cursor(pool: GuardedPool) -> None:
    async with pool.transaction() as connection:
        await connection.cursor("TABLE item", timeout=0.02)


async def test_a_slow_commit(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    await pool.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END';"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION wait()"
    )

    async def this_very_test() -> None:
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO item VALUES ($1)", ARGUMENT)

    await this_very_test()
    the_line(caplog, "the end of a transaction")
    caplog.clear()
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO item VALUES ($1)", ARGUMENT)
        await transaction.commit()
    the_line(caplog, "COMMIT", "test_a_slow_commit")


async def test_statements_that_failed_or_were_cancelled(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await pool.fetch("SELECT 1 / (extract(epoch from clock_timestamp())::int * 0 + length(pg_sleep(0.02)::text))")
    running = asyncio.create_task(pool.fetch("SELECT pg_sleep(9)"))
    await asyncio.sleep(0.03)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    failed, cancelled = (record.getMessage() for record in caplog.records if " took " not in record.getMessage())
    assert "A statement failed (asyncpg.exceptions.DivisionByZeroError) after" in failed
    assert "A statement was cancelled after" in cancelled


async def test_the_text_is_one_short_line(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    await pool.fetch(f"SELECT pg_sleep(0.02),\n\t  1 /* \x1b[31m {'x' * 5000} */")
    record = caplog.records[-1]
    text = record.statement  # type: ignore[attr-defined]
    assert text.startswith("SELECT pg_sleep(0.02), 1 /* ?[31m xxx")
    assert text.endswith("xxx …")
    assert len(text) == TEXT_MAX


async def test_quick_ones_are_not_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with pool_for(url, slow_statement_ms=2000) as pool:
        await pool.fetch(SLEEP, ARGUMENT)
        async with pool.transaction() as connection:
            await iterate(connection.cursor("SELECT 1"))
    assert caplog.records == []


async def test_a_statement_after_the_end_of_its_borrow_is_refused_as_ever(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        prepared = await connection.prepare("SELECT 1")
    with pytest.raises(asyncpg.InterfaceError):
        await prepared.fetch()


async def test_without_the_setting_nothing_is_timed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool, pool.acquire() as connection:
        await connection.fetch(SLEEP, ARGUMENT)
        assert type(connection) is LentConnection, "its methods are those without a clock for this"
    assert caplog.records == []
