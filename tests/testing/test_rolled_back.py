"""`rolled_back(pool)`: the same face, no trace, and what cannot work says so by name."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import itertools
from typing import Literal

import asyncpg
import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConnectFailedError,
    Connection,
    DatabaseSettings,
    GuardedPool,
    PoolClosedError,
    StatementTimeoutError,
)
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.testing import (
    ManualClock,
    Observer,
    RolledBackError,
    TcpProxy,
    TemporaryPostgres,
    confirmation_event,
    database_down,
    open_circuit,
    recorded,
    rolled_back,
)
from asyncdb_guard.testing.pools.statements import Reading, read
from tests.support.bound import at_rest
from tests.support.eventually import Eventually
from tests.support.program import run

INSERT = "INSERT INTO item (name) VALUES ($1)"
NAMES = "SELECT array_agg(name ORDER BY id) FROM item"


async def test_nothing_of_it_is_left(base: GuardedPool) -> None:
    async with rolled_back(base) as pool:
        await pool.execute(INSERT, "second")
        await pool.executemany(INSERT, [("third",), ("fourth",)])
        async with pool.transaction() as conn:
            await conn.execute(INSERT, "fifth")
        assert await pool.fetchval(NAMES) == ["first", "second", "third", "fourth", "fifth"]
        assert await base.fetchval(NAMES) == ["first"]
    assert await base.fetchval(NAMES) == ["first"]
    await at_rest(base)


async def test_a_borrow_that_is_awaited_is_released(base: GuardedPool) -> None:
    async with rolled_back(base) as pool:
        connection = await pool.acquire()
        await connection.execute(INSERT, "second")
        for _ in range(2):
            await pool.release(connection)
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await connection.fetchval(NAMES)
        assert await pool.fetchval(NAMES) == ["first", "second"]
    assert await base.fetchval(NAMES) == ["first"]


async def test_sequences_are_set_back(base: GuardedPool) -> None:
    state = "SELECT last_value, is_called FROM item_id_seq"
    await base.execute("CREATE SEQUENCE fresh")
    before = await base.fetchrow(state)
    async with rolled_back(base) as pool:
        await pool.execute(INSERT, "second")
        await pool.execute("SELECT nextval('fresh'); CREATE SEQUENCE new; SELECT nextval('new')")
        await pool.execute("DROP SEQUENCE fresh")
        assert await pool.fetchrow(state) != before
    assert await base.fetchrow(state) == before
    assert tuple(await base.fetchrow("SELECT last_value, is_called FROM fresh") or ()) == (1, False)


async def test_a_database_without_sequences_has_none_to_set_back(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as base:
        async with rolled_back(base) as pool:
            assert await pool.fetchval("SELECT 1") == 1
        assert base.stats()["acquired"] == 1


async def test_a_statement_that_fails_undoes_nothing_but_itself(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        await conn.execute(INSERT, "second")
        for _ in range(2):
            with pytest.raises(asyncpg.UniqueViolationError):
                await conn.execute(INSERT, "second")
        await conn.execute(INSERT, "third")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await conn.execute("INSERT INTO item (name) VALUES ('fourth'); SELECT 1 / 0")
    assert await pool.fetchval(NAMES) == ["first", "second", "third"]


async def test_transactions_are_savepoints(pool: GuardedPool) -> None:
    with contextlib.suppress(KeyError):
        async with pool.transaction() as conn:
            await conn.execute(INSERT, "undone")
            raise KeyError
    async with pool.acquire() as conn:
        assert not conn.is_in_transaction()
        outer = conn.transaction()
        await outer.start()
        assert conn.is_in_transaction()
        await conn.execute(INSERT, "second")
        with contextlib.suppress(KeyError):
            async with conn.transaction():
                await conn.execute(INSERT, "undone")
                raise KeyError
        async with conn.transaction():
            await conn.execute(INSERT, "third")
        await outer.commit()
        assert not conn.is_in_transaction()
        undone = conn.transaction()
        await undone.start()
        await conn.execute(INSERT, "undone")
        await undone.rollback()
    assert await pool.fetchval(NAMES) == ["first", "second", "third"]


async def test_a_failed_statement_spoils_the_transaction_it_is_in_and_no_more(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute(INSERT, "undone")
            with pytest.raises(asyncpg.UniqueViolationError):
                await conn.execute(INSERT, "first")
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await conn.execute("SELECT 1")
            # the end of the block is a COMMIT, which the server would make a ROLLBACK, without a word
        assert await conn.fetchval(NAMES) == ["first"]
        outer, inner = conn.transaction(), conn.transaction()
        await outer.start()
        await inner.start()
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.execute(INSERT, "first")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await inner.commit()
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await conn.transaction().start()
        await outer.rollback()
        assert await conn.fetchval("SELECT 1") == 1


async def test_asyncpg_still_says_how_a_transaction_is_misused(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        async with conn.transaction():
            managed = conn.transaction()
            async with managed:
                with pytest.raises(asyncpg.InterfaceError, match="manually commit"):
                    await managed.commit()
                with pytest.raises(asyncpg.InterfaceError, match="manually rollback"):
                    await managed.rollback()
                with pytest.raises(asyncpg.InterfaceError, match="already started"):
                    await managed.start()
            assert conn.is_in_transaction()
        ended = conn.transaction()
        await ended.start()
        await ended.commit()
        with pytest.raises(asyncpg.InterfaceError, match="already committed"):
            await ended.commit()
        with pytest.raises(asyncpg.InterfaceError, match="already committed"):
            await ended.start()
        assert not conn.is_in_transaction()


async def test_what_a_commit_checks_is_checked_at_the_end_of_each_transaction(pool: GuardedPool) -> None:
    orphan = "INSERT INTO item (name, parent) VALUES ($1, 7)"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await pool.execute(orphan, "undone")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        async with pool.transaction() as conn:
            await conn.execute(orphan, "undone")
    for _ in range(2):  # the check leaves the constraint deferred
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO item (parent) VALUES (8)")
            await conn.execute("INSERT INTO parent VALUES (8) ON CONFLICT DO NOTHING")
    assert await pool.fetchval("SELECT count(*) FROM item WHERE parent IS NOT NULL") == 2


async def test_a_read_only_transaction_is_one(pool: GuardedPool) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with pool.transaction(readonly=True) as conn:
            await conn.execute(INSERT, "undone")
    async with pool.transaction(readonly=True) as conn:
        assert await conn.fetchval(NAMES) == ["first"]
    async with pool.transaction() as conn, conn.transaction(readonly=True):  # asyncpg passes it over there
        await conn.execute(INSERT, "second")
    assert await pool.fetchval(NAMES) == ["first", "second"]


async def test_another_isolation_level_is_told_with_the_remedy(base: GuardedPool, pool: GuardedPool) -> None:
    async with pool.transaction(isolation="read_committed") as conn:
        assert await conn.fetchval("SHOW transaction_isolation") == "read committed"
    with pytest.raises(RolledBackError, match=r"rolled_back\(pool, isolation='serializable'\)"):
        async with pool.transaction(isolation="serializable"):
            pass
    level = "SHOW transaction_isolation"
    async with (
        rolled_back(base, isolation="serializable") as serializable,
        serializable.transaction(isolation="serializable") as conn,
    ):
        assert await conn.fetchval(level) == "serializable"


@pytest.mark.parametrize(
    ("sql", "command"),
    [
        ("BEGIN", "BEGIN"),
        ("start transaction read only", "START TRANSACTION"),
        ("SELECT 1; COMMIT", "COMMIT"),
        ("end;", "END"),
        ("ROLLBACK", "ROLLBACK"),
        ("rollback work", "ROLLBACK"),
        ("ABORT", "ABORT"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("LISTEN news", "LISTEN"),
        ("/* first */ COMMIT -- last", "COMMIT"),
    ],
)
async def test_a_transaction_by_hand_is_refused_by_name(pool: GuardedPool, sql: str, command: str) -> None:
    await pool.execute(INSERT, "second")
    with pytest.raises(RolledBackError, match=f"^{command} cannot run on a rolled-back pool.*guarded_pool"):
        await pool.execute(sql)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(RolledBackError, match=command):
            await conn.fetch(sql)
    assert await pool.fetchval(NAMES) == ["first", "second"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT CASE WHEN true THEN 1 END",
        "SELECT 'a; COMMIT'",
        "SELECT E'\\'; COMMIT'",
        'SELECT 1 AS "; COMMIT"',
        "SELECT 1 -- ; COMMIT",
        "SELECT /* ; COMMIT; */ 1",
        "DO $$BEGIN; PERFORM 1; END$$".replace("BEGIN;", "BEGIN"),
        "SELECT 1 AS listen",
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE SQL BEGIN ATOMIC SELECT 1; END",
        "PREPARE commit AS SELECT 1",
    ],
)
async def test_a_word_that_only_looks_like_it_is_not_refused(pool: GuardedPool, sql: str) -> None:
    assert read(sql).refused is None
    await pool.execute(sql)


def test_an_empty_statement_is_nobodys_command() -> None:
    assert read("") == read("; ") == read(";; -- COMMIT") == Reading()


async def test_a_savepoint_by_hand_works_in_a_transaction(pool: GuardedPool) -> None:
    async with pool.transaction() as conn:
        await conn.execute("SAVEPOINT mine")
        await conn.execute(INSERT, "undone")
        await conn.execute("ROLLBACK TO SAVEPOINT mine")
        await conn.execute("ROLLBACK TRANSACTION TO SAVEPOINT mine")
    assert await pool.fetchval(NAMES) == ["first"]


async def test_what_needs_a_transaction_is_refused_outside_of_one(pool: GuardedPool, base: GuardedPool) -> None:
    alone = ("SAVEPOINT mine", "RELEASE mine", "rollback to mine", "LOCK TABLE item", "DECLARE c CURSOR FOR SELECT 1")
    for sql in alone:
        for one in (base, pool):  # as the server itself says it
            with pytest.raises(asyncpg.NoActiveSQLTransactionError, match="can only be used in transaction blocks"):
                await one.execute(sql)
    async with pool.acquire() as conn:
        await conn.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1; FETCH c; CLOSE c")
        await conn.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
        async with conn.transaction():
            for sql in ("SAVEPOINT mine", "RELEASE mine", "LOCK TABLE item", "DECLARE d CURSOR FOR SELECT 1"):
                await conn.execute(sql)


SHOW = "SELECT current_setting('app.tenant', true)"


@pytest.mark.parametrize(
    "sql",
    [
        "SET LOCAL app.tenant = 'x'",
        'set local "app.tenant" TO x',
        "SELECT set_config('app.tenant', concat('x'), true)",
    ],
)
async def test_a_local_setting_ends_with_its_transaction(base: GuardedPool, pool: GuardedPool, sql: str) -> None:
    for one in (base, pool):
        async with one.acquire() as conn:
            async with conn.transaction():
                for _ in range(2):
                    await conn.execute(sql)
                async with conn.transaction():
                    assert await conn.fetchval(SHOW) == "x"
            assert not await conn.fetchval(SHOW)
            await conn.execute("SET app.tenant = 'mine'")
            await conn.execute(sql)  # outside of a transaction: a warning, and no effect
            assert await conn.fetchval(SHOW) == "mine"
            with contextlib.suppress(KeyError):
                async with conn.transaction():
                    await conn.execute(sql)
                    raise KeyError
            assert await conn.fetchval(SHOW) == "mine"
            async with conn.transaction():
                with pytest.raises(asyncpg.UniqueViolationError):
                    await conn.execute(INSERT, "first")
                with pytest.raises(asyncpg.InFailedSQLTransactionError):
                    await conn.execute(sql)
            assert await conn.fetchval(SHOW) == "mine"


async def test_settings_with_words_of_their_own_end_with_the_transaction_too(pool: GuardedPool, role: str) -> None:
    show = "SELECT current_setting('role'), current_setting('timezone'), current_setting('search_path')"
    async with pool.acquire() as conn:
        before = await conn.fetchrow(show)
        async with conn.transaction():
            await conn.execute(f"SET LOCAL ROLE {role}; SET LOCAL TIME ZONE 'Asia/Tokyo'; SET LOCAL SCHEMA 'public'")
            await conn.execute("SET LOCAL TRANSACTION READ ONLY")
            assert tuple(await conn.fetchrow(show) or ()) == (role, "Asia/Tokyo", "public")
        assert await conn.fetchrow(show) == before
        await conn.execute(INSERT, "second")
        with pytest.raises(asyncpg.UndefinedObjectError):
            await conn.execute("SET LOCAL nothing_of_that_name = 1")
        assert await conn.fetchrow(show) == before


async def test_a_table_that_a_commit_drops_is_dropped(base: GuardedPool, pool: GuardedPool) -> None:
    for one in (base, pool):
        async with one.acquire() as conn:
            for _ in range(2):
                async with conn.transaction():
                    await conn.execute("CREATE TEMP TABLE staging (name text) ON COMMIT DROP")
                    await conn.execute('CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp."St 2" ON COMMIT DROP AS SELECT 1')
                    await conn.copy_records_to_table("staging", records=[("staged",)])
                    assert await conn.fetchval("SELECT name FROM staging") == "staged"
            assert await conn.fetchval("""SELECT coalesce(to_regclass('staging'), to_regclass('"St 2"'))""") is None
            await conn.execute("CREATE TEMP TABLE kept (name text)")
            assert await conn.fetch("SELECT * FROM kept") == []
    with pytest.raises(RolledBackError, match=r"^ON COMMIT DELETE ROWS cannot run"):
        await pool.execute("CREATE TEMP TABLE emptied (name text) ON COMMIT DELETE ROWS")


@pytest.mark.parametrize(
    "sql", ["VACUUM", "CREATE INDEX CONCURRENTLY i ON item (name)", "CREATE DATABASE d", "DISCARD ALL"]
)
async def test_the_server_names_what_cannot_run_in_a_transaction_and_a_note_has_the_remedy(
    pool: GuardedPool, sql: str
) -> None:
    with pytest.raises(
        asyncpg.ActiveSQLTransactionError, match=sql.split(" INDEX", maxsplit=1)[0].removesuffix(" d")
    ) as refusal:
        await pool.execute(sql)
    assert any("guarded_pool" in note for note in refusal.value.__notes__)
    assert await pool.fetchval("SELECT 1") == 1


async def test_copy_works(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        await conn.copy_records_to_table("item", records=[("second",)], columns=["name"])
        await conn.copy_to_table("item", source=io.BytesIO(b"third\n"), columns=["name"])
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.copy_records_to_table("item", records=[("first",)], columns=["name"])
        written = io.BytesIO()
        await conn.copy_from_query("SELECT name FROM item ORDER BY id", output=written)
        await conn.copy_from_table("parent", output=written)
    assert written.getvalue() == b"first\nsecond\nthird\n"


async def test_prepared_statements_are_statements_and_end_with_the_block(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        insert = await conn.prepare(INSERT + " RETURNING name")
        assert await insert.fetchval("second") == "second"
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert.fetch("second")
        assert [record["name"] for record in await insert.fetch("third")] == ["third"]
        assert insert.get_query().startswith("INSERT")
        with pytest.raises(asyncpg.NoActiveSQLTransactionError):
            insert.cursor("fourth")
        async with conn.transaction():
            select = await conn.prepare("SELECT name FROM item ORDER BY id")
            assert [record["name"] async for record in select.cursor()] == ["first", "second", "third"]
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await insert.fetchval("late")


async def test_a_cursor_needs_a_transaction_as_it_does_anywhere(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(asyncpg.NoActiveSQLTransactionError):
            conn.cursor("SELECT 1")
        async with conn.transaction():
            assert [tuple(record) async for record in conn.cursor("SELECT $1::int", 1)] == [(1,)]


async def test_what_would_end_the_session_or_wait_for_news_is_refused(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(RolledBackError, match=r"^LISTEN"):
            await conn.add_listener("news", print)
        with pytest.raises(RolledBackError, match=r"^close"):
            await conn.close()
        with pytest.raises(RolledBackError, match=r"^terminate"):
            conn.terminate()
        with pytest.raises(RolledBackError, match=r"^reset"):
            await conn.reset()
        await conn.execute("NOTIFY news")
        assert await conn.fetchval("SELECT 1") == 1
    with pytest.raises(RolledBackError, match=r"^LISTEN cannot run .* no notification would arrive"):
        pool.listen("news")


async def test_a_connection_does_not_work_after_its_block(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        assert isinstance(conn, Connection)
    async with pool.acquire() as other:
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await conn.execute("SELECT 1")
        assert await other.fetchval("SELECT 1") == 1


async def test_an_acquisition_is_good_for_one_block_at_a_time(pool: GuardedPool) -> None:
    acquisition = pool.acquire()
    async with acquisition:
        with pytest.raises(RuntimeError, match="in use"):
            await acquisition.__aenter__()
    async with acquisition as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_concurrent_borrowers_come_one_after_the_other(pool: GuardedPool) -> None:
    inside = 0

    async def borrow(number: int) -> int:
        nonlocal inside
        async with pool.acquire() as conn:
            inside += 1
            assert inside == 1
            assert pool.stats()["lent"] == 1
            await conn.execute(INSERT, f"n{number}")
            inside -= 1
        return number

    assert await asyncio.gather(*map(borrow, range(10))) == list(range(10))
    assert await pool.fetchval(NAMES) == ["first", *(f"n{number}" for number in range(10))]
    assert (pool.stats()["lent"], pool.stats()["idle"], pool.stats()["acquired"]) == (0, 1, 11)


async def borrow(pool: GuardedPool) -> None:
    async with pool.acquire(timeout=0.02):
        pass


async def test_whoever_waits_too_long_is_told_where_the_connection_is(pool: GuardedPool) -> None:
    async with pool.acquire():
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        waiting = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        assert pool.stats()["waiting"] == 1
        with pytest.raises(AcquireTimeoutError, match=rf"borrowed at tests.testing.test_rolled_back\.py:{line} in"):
            await asyncio.create_task(borrow(pool))
        assert pool.left_open[0].startswith(f"tests/testing/test_rolled_back.py:{line} in")  # type: ignore[attr-defined]
    assert await waiting == 1
    assert pool.left_open == []  # type: ignore[attr-defined]
    assert pool.stats()["acquire_timeouts"] == 1


async def test_a_borrow_inside_of_a_borrow_is_refused_at_once(pool: GuardedPool) -> None:
    with recorded(pool) as events:
        async with pool.acquire():
            with pytest.raises(
                AcquireTimeoutError, match=r"has it already: it was borrowed at tests.testing.test_rolled"
            ):
                await pool.fetchval("SELECT 1")
    assert events.names == ["acquire_timeout"]
    taken = await pool.acquire()  # which another task may return
    later = asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(pool.release(taken)))
    assert await pool.fetchval("SELECT 1") == 1
    assert later.when() > 0


async def test_observers_are_told_of_borrows(pool: GuardedPool) -> None:
    told: list[str] = []

    class Observer:
        def acquired(self, seconds: float) -> None:
            told.append("acquired")

        def failed(self, seconds: float, error: BaseException) -> None:
            told.append(type(error).__name__)

        def released(self, seconds: float) -> None:
            told.append("released")

    pool.observers.add(Observer())
    await pool.ping()
    with open_circuit(pool), pytest.raises(CircuitOpenError):
        await pool.ping()
    assert told == ["acquired", "released", "CircuitOpenError"]


async def test_two_operations_at_once_on_one_connection_are_an_error_as_ever(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        results = await asyncio.gather(
            conn.fetchval("SELECT pg_sleep(0.01)"), conn.fetchval("SELECT 1"), return_exceptions=True
        )
        assert isinstance(results[1], asyncpg.InterfaceError)
        assert results[0] is not results[1]
        assert await conn.fetchval("SELECT 1") == 1


async def test_a_cancelled_statement_is_undone_and_the_next_one_works(
    pool: GuardedPool, observer: Observer, eventually: Eventually
) -> None:
    async def hang() -> None:
        async with pool.acquire() as conn:
            await conn.execute(INSERT, "second")
            await conn.execute("INSERT INTO item (name) SELECT 'undone' FROM pg_sleep(60)")

    task = asyncio.create_task(hang())

    async def hangs() -> bool:
        return any("pg_sleep" in row["query"] for row in await observer.sessions() if row["state"] == "active")

    await eventually(hangs)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pool.fetchval(NAMES) == ["first", "second"]


@pytest.mark.parametrize("reset", ["always", "never"])
async def test_a_statement_that_took_too_long_is_undone_and_nobody_else_notices(
    base: GuardedPool, url: str, reset: Literal["always", "never"]
) -> None:
    settings = DatabaseSettings(url=url, command_timeout_ms=60, session_reset=reset)
    bound = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"
    async with GuardedPool(settings) as impatient, rolled_back(impatient) as pool:
        await pool.execute(INSERT, "second")
        before = await pool.fetchval(bound)
        with pytest.raises(StatementTimeoutError):
            await pool.execute("INSERT INTO item (name) SELECT 'undone' FROM pg_sleep(60)")
        assert await pool.fetchval("SELECT 1 FROM pg_sleep(0.1)", timeout=5) == 1
        with pytest.raises(asyncpg.DivisionByZeroError):
            await pool.fetchval("SELECT 1 / 0", timeout=5)
        assert await pool.fetchval(bound) == before
        with pytest.raises(asyncpg.UniqueViolationError):
            async with pool.transaction() as conn:
                await conn.execute(INSERT, "second")
        async with pool.transaction() as conn:  # and the borrower passes over it
            with pytest.raises(asyncpg.UniqueViolationError):
                await conn.execute(INSERT, "second")
        assert await pool.fetchval(NAMES) == ["first", "second"]
    await at_rest(impatient)


async def test_an_end_at_any_moment_undoes_all_of_it(base: GuardedPool) -> None:
    for rounds in range(1, 60, 2):
        async with rolled_back(base) as pool:
            await pool.ping()
            task = asyncio.create_task(pool.execute(INSERT, "undone"))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait({task})
    assert await base.fetchval(NAMES) == ["first"]
    await at_rest(base)


async def test_a_session_that_ended_unseen_has_nothing_to_undo(base: GuardedPool, server: TemporaryPostgres) -> None:
    async with rolled_back(base) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        await pool.execute(INSERT, "undone")
        # no statement runs, and the event loop does not: nobody hears of it before the end
        server.psql(f"SELECT pg_terminate_backend({pid}, 5000)")
    assert await base.fetchval(NAMES) == ["first"]
    await at_rest(base)


async def test_a_borrower_cancelled_at_any_moment_spoils_nothing(base: GuardedPool) -> None:
    for rounds in itertools.count(1):
        async with rolled_back(base) as pool:

            async def work(pool: GuardedPool) -> None:
                async with pool.transaction() as conn:
                    await conn.execute(INSERT, "second")
                await pool.execute(INSERT, "third")

            task = asyncio.create_task(work(pool))
            for _ in range(rounds):
                await asyncio.sleep(0)
            finished = task.done()
            task.cancel()
            await asyncio.wait({task})
            assert await pool.fetchval(NAMES) in (["first"], ["first", "second"], ["first", "second", "third"])
            await pool.execute(INSERT, "after")
        assert await base.fetchval(NAMES) == ["first"]
        if finished:
            break
    assert rounds > 10
    await at_rest(base)


async def test_a_transaction_that_a_borrower_left_open_is_undone(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        await conn.transaction().start()
        await conn.execute(INSERT, "undone")
    assert await pool.fetchval(NAMES) == ["first"]


async def test_the_session_is_reset_between_borrowers(base: GuardedPool, url: str) -> None:
    async with rolled_back(base) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SET work_mem = '99MB'")
            assert await conn.fetchval("SHOW work_mem") == "99MB"
        assert await pool.fetchval("SHOW work_mem") != "99MB"
    async with GuardedPool(DatabaseSettings(url=url, session_reset="never")) as never, rolled_back(never) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SET work_mem = '99MB'")
        assert await pool.fetchval("SHOW work_mem") == "99MB"


async def test_the_reset_between_borrowers_is_the_pools_own(server: TemporaryPostgres, role: str) -> None:
    async def prepare(conn: Connection) -> None:
        await conn.execute("SET app.tenant = 'of init'")

    async with GuardedPool(DatabaseSettings(url=server.url()), init=prepare) as base, rolled_back(base) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval(SHOW) == "of init"
                assert await conn.fetchval("SELECT session_user") == "postgres"
                await conn.execute(f"SET app.tenant = 'of a borrower'; SET SESSION AUTHORIZATION {role}")
                await conn.execute("PREPARE mine AS SELECT 1")
                assert await conn.fetchval("SELECT session_user") == role


async def test_type_codecs_end_with_it(base: GuardedPool) -> None:
    async with rolled_back(base) as pool, pool.acquire() as conn:
        await conn.set_type_codec("date", encoder=str, decoder=lambda text: f"<{text}>", schema="pg_catalog")
        assert await conn.fetchval("SELECT '2026-01-02'::date") == "<2026-01-02>"
    assert str(await base.fetchval("SELECT '2026-01-02'::date")) == "2026-01-02"


async def test_a_changed_schema_is_seen_at_once_and_undone(base: GuardedPool) -> None:
    assert read("SELECT 1; drop table x").changes_schema
    assert not read("SELECT 'create'").changes_schema
    for column in ("a integer", "b text"):
        async with rolled_back(base) as pool:
            await pool.execute("CREATE TABLE made (id integer)")
            assert await pool.fetch("SELECT * FROM made") == []
            await pool.execute(f"ALTER TABLE made ADD {column}")
            await pool.execute("INSERT INTO made (id) VALUES (1)")
            assert len(await pool.fetchrow("SELECT * FROM made") or ()) == 2
            async with pool.transaction() as conn:
                await conn.execute("DROP TABLE made")
        assert await base.fetchval("SELECT to_regclass('made')") is None


LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises for a session that has ended; the last one before it has read the end of the stream."""


async def test_a_lost_session_is_told(base: GuardedPool, observer: Observer, role: str) -> None:
    async with rolled_back(base) as pool:
        await pool.execute(INSERT, "second")
        await observer.terminate(user=role)
        with contextlib.suppress(*LOST, RolledBackError):
            await pool.execute(INSERT, "third")  # the news may have come already
        with pytest.raises(RolledBackError, match="session of the rolled-back pool was lost"):
            await pool.execute(INSERT, "third")
    assert await base.fetchval(NAMES) == ["first"]


async def test_a_session_that_is_lost_in_a_transaction_cannot_commit(
    base: GuardedPool, observer: Observer, role: str
) -> None:
    async with rolled_back(base) as pool:
        with contextlib.suppress(*LOST):
            async with pool.acquire() as conn:
                transaction = conn.transaction()
                await transaction.start()
                await observer.terminate(user=role)
                with pytest.raises(LOST):
                    await transaction.commit()
    assert await base.fetchval(NAMES) == ["first"]


async def test_a_closed_one_says_so_and_cuts_off_who_still_has_the_connection(base: GuardedPool) -> None:
    pool = rolled_back(base)
    late = pool.acquire()
    conn = await late.__aenter__()
    await pool.disconnect()
    assert await conn.fetchval("SELECT 1") == 1
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await conn.fetchval("SELECT 1")
    await late.__aexit__(None, None, None)
    with pytest.raises(PoolClosedError):
        await pool.fetchval("SELECT 1")
    await pool.close()
    await at_rest(base)


async def test_close_waits_for_one_that_has_just_begun(base: GuardedPool) -> None:
    pool = rolled_back(base)
    beginning = asyncio.create_task(pool.fetchval("SELECT 1"))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.wait({beginning})
    await pool.close()
    await at_rest(base)


async def test_terminate_ends_the_session_at_once(base: GuardedPool, observer: Observer, role: str) -> None:
    pool = rolled_back(base)
    pool.terminate()
    pool = rolled_back(base)
    await pool.execute(INSERT, "second")
    pool.terminate()
    assert await base.fetchval(NAMES) == ["first"]
    with pytest.raises(PoolClosedError):
        await pool.fetchval("SELECT 1")


async def test_a_base_that_cannot_connect_says_what_it_says(url: str, server: TemporaryPostgres) -> None:
    nowhere = GuardedPool(DatabaseSettings(url="postgresql://u@127.0.0.1:1/d"))
    async with nowhere, rolled_back(nowhere) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.fetchval("SELECT 1")
        beginning = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises((ConnectFailedError, PoolClosedError)):
            await beginning


async def test_a_beginning_that_fails_returns_the_connection(url: str, server: TemporaryPostgres, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as base:
        async with rolled_back(base, isolation="no_such_level") as pool:  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="isolation"):
                await pool.fetchval("SELECT 1")
        await at_rest(base)
        assert await base.fetchval("SELECT 1") == 1


def test_it_serves_one_event_loop(server: TemporaryPostgres, role: str, url: str) -> None:
    server.psql(f"CREATE SEQUENCE {role}.counted OWNED BY NONE; ALTER SEQUENCE {role}.counted OWNER TO {role}")
    base = GuardedPool(DatabaseSettings(url=url))
    pool = rolled_back(base)

    async def use() -> None:
        await pool.execute("SELECT nextval('counted')")

    async def end() -> None:
        await pool.close()
        assert await base.fetchval("SELECT is_called FROM counted") is False
        await base.close()

    asyncio.run(use())
    with pytest.raises(RolledBackError, match="one event loop"):
        asyncio.run(use())
    asyncio.run(end())


def test_the_end_of_an_event_loop_cancels_no_reset(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    base = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy))

    async def use() -> None:
        async with rolled_back(base) as pool:
            await pool.ping()

    for _ in range(2):
        asyncio.run(use())
    asyncio.run(base.close())
    assert (proxy.accepted, proxy.cancel_requests) == (2, 0)


def test_its_events_are_the_base_pools_and_its_circuit_is_its_own(server: TemporaryPostgres, url: str) -> None:
    async def main() -> None:
        async with GuardedPool(DatabaseSettings(url=url)) as base, rolled_back(base) as pool:
            with recorded(base) as events:
                await pool.execute("SELECT 1")
                with open_circuit(pool):
                    with pytest.raises(CircuitOpenError):
                        await pool.execute("SELECT 1")
                    assert base.stats()["circuit"] == "closed"
                    assert pool.stats()["rejections"] == 1
                assert await pool.fetchval("SELECT 1") == 1
            assert events.names == ["connection_opened", "circuit_opened", "circuit_rejected", "circuit_half_opened",
                                    "circuit_closed"]  # fmt: skip

    asyncio.run(main())


async def test_a_borrower_is_the_trial_of_its_circuit(pool: GuardedPool) -> None:
    with ManualClock() as clock, open_circuit(pool):
        clock.advance(60)
        with pytest.raises(KeyError):
            async with pool.acquire():
                raise KeyError
        assert pool.stats()["circuit"] == "half_open"
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["circuit"] == "closed"


async def test_the_database_can_be_down_and_come_back_with_what_was_written(pool: GuardedPool) -> None:
    await pool.execute(INSERT, "second")
    with database_down(pool), pytest.raises(ConnectFailedError):
        await pool.execute(INSERT, "third")
    assert await pool.fetchval(NAMES) == ["first", "second"]


async def test_a_borrow_is_lost_once_the_database_was_down(pool: GuardedPool) -> None:
    lost = asyncpg.ConnectionDoesNotExistError
    async with pool.acquire() as conn:
        await conn.execute(INSERT, "second")
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(INSERT, "undone")
        with database_down(pool), pytest.raises(lost):
            await conn.fetchval("SELECT 1")
        for call in (lambda: conn.fetchval("SELECT 1"), conn.transaction().start, transaction.commit):
            with pytest.raises(lost):
                await call()
    async with pool.acquire() as conn:
        with contextlib.suppress(KeyError):
            async with conn.transaction():
                await conn.execute(INSERT, "undone")
                with database_down(pool):
                    raise KeyError
    assert await pool.fetchval(NAMES) == ["first", "second"]


async def test_triggers_run_on_it(base: GuardedPool) -> None:
    async with rolled_back(base) as pool:
        triggers = CognitoTriggers(pool, provision="INSERT INTO item (name) VALUES ($1) ON CONFLICT DO NOTHING")
        for _ in range(2):
            await triggers.provision_user(confirmation_event(sub="the-sub"))
        assert await pool.fetchval(NAMES) == ["first", "the-sub"]
    assert await base.fetchval(NAMES) == ["first"]


def test_a_killed_process_leaves_no_trace_either(server: TemporaryPostgres, role: str, url: str) -> None:
    server.psql(f"CREATE TABLE {role}.t (i int); ALTER TABLE {role}.t OWNER TO {role}")
    said = run(
        """
        import asyncio, os
        from asyncdb_guard import DatabaseSettings, GuardedPool
        from asyncdb_guard.testing import rolled_back
        async def main():
            pool = rolled_back(GuardedPool(DatabaseSettings(url=os.environ["URL"])))
            await pool.execute("INSERT INTO t VALUES (1)")
            print(await pool.fetchval("SELECT count(*) FROM t"), flush=True)
            os._exit(0)
        asyncio.run(main())
        """,
        URL=url,
    )
    assert said == "1\n"
    assert server.psql(f"SELECT count(*) FROM {role}.t") == "0"
