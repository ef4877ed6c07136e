"""What a borrower leaves in a session never reaches the next one, whatever the server makes of the reset."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.connect.reset import AUTHORIZATION, USUAL, ResetPlan, lacks
from tests.support.bound import at_rest
from tests.support.speaker import Platform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

WHO = "SELECT current_user::text"


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        await pool.ping()
        yield pool
        assert pool.stats()["connects"] == 1, "the session was replaced, not reset"


async def left(pool: GuardedPool, *statements: str) -> None:
    """One borrower runs these, and returns its connection."""
    async with pool.acquire() as connection:
        for statement in statements:
            await connection.execute(statement)


async def test_a_role_does_not_reach_the_next_borrower(pool, server, role):
    server.psql(f"CREATE ROLE {role}_admin; GRANT {role}_admin TO {role}")
    await left(pool, f"SET ROLE {role}_admin")
    assert await pool.fetchval(WHO) == role


async def test_a_role_that_a_function_sets_does_not_either(pool, server, role):
    server.psql(f"CREATE ROLE {role}_admin; GRANT {role}_admin TO {role}")
    await left(
        pool,
        f"CREATE FUNCTION {role}.rise() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET ROLE {role}_admin; END $$",
    )
    for _ in range(2):
        async with pool.acquire() as connection:
            await connection.fetchval(f"SELECT {role}.rise()")
            assert await connection.fetchval(WHO) == f"{role}_admin"
        assert await pool.fetchval(WHO) == role


async def test_the_role_that_the_dba_set_for_the_login_comes_back(url, server, role):
    server.psql(f"CREATE ROLE {role}_admin; GRANT {role}_admin TO {role}; ALTER ROLE {role} SET role = '{role}_admin'")
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        assert await pool.fetchval(WHO) == f"{role}_admin"
        for statement in ("RESET ROLE", "SET ROLE none", f"SET SESSION AUTHORIZATION {role}"):
            await left(pool, statement)
            assert await pool.fetchval(WHO) == f"{role}_admin", statement


async def test_a_session_user_does_not(server, role):
    async with GuardedPool(DatabaseSettings(url=server.url())) as pool:
        await left(pool, f"SET SESSION AUTHORIZATION {role}")
        assert await pool.fetchval("SELECT session_user::text") == "postgres"
        await left(pool, f"SET ROLE {role}; SET SESSION AUTHORIZATION {role}", f"SET ROLE {role}")
        assert await pool.fetchval(WHO) == "postgres"
        assert pool.stats()["connects"] == 1


async def test_temporary_objects_do_not(pool, role):
    await left(pool, f"CREATE TABLE {role}.invoice AS SELECT 'real' AS tenant")
    await left(
        pool,
        "CREATE TEMP TABLE invoice AS SELECT 'of another' AS tenant",
        "CREATE TEMP SEQUENCE number",
        "CREATE FUNCTION pg_temp.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    assert await pool.fetchval("SELECT tenant FROM invoice") == "real"
    assert await pool.fetchval("SELECT to_regclass('number') IS NULL")
    with pytest.raises(asyncpg.PostgresError):
        await pool.fetchval("SELECT pg_temp.one()")


async def test_the_state_of_a_sequence_does_not(pool, role):
    await left(pool, f"CREATE SEQUENCE {role}.number", f"SELECT nextval('{role}.number')")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await pool.fetchval("SELECT lastval()")


async def test_cursors_listeners_locks_and_settings_do_not(pool, observer):
    async with pool.acquire() as connection:
        pid = connection.get_server_pid()
        await connection.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1; LISTEN channel; SET work_mem = '1MB'")
        await connection.execute("SELECT pg_advisory_lock(7), pg_advisory_lock_shared(8); SET app.tenant = '42'")
    assert await pool.fetchval("SELECT count(*) FROM pg_cursors WHERE name = 'c'") == 0
    assert await pool.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0
    assert await pool.fetchval("SHOW work_mem") == "4MB"
    assert await pool.fetchval("SELECT current_setting('app.tenant', true)") in {None, ""}
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
    assert await observer.fetchval(held, pid) == 0


async def test_a_session_that_was_made_read_only_does_not(pool, role):
    await left(pool, "CREATE TEMP TABLE t (a int)", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    assert await pool.fetchval("SHOW transaction_read_only") == "off"
    assert await pool.fetchval("SELECT to_regclass('t') IS NULL")


async def test_an_open_transaction_does_not_and_somebody_is_told(pool, role, caplog):
    await left(pool, "BEGIN", f"CREATE TABLE {role}.t ()")
    assert await pool.fetchval(f"SELECT to_regclass('{role}.t') IS NULL")
    assert ["open transaction" in record.getMessage() for record in caplog.records] == [True]


async def test_a_failed_transaction_does_not(pool, role):
    with pytest.raises(asyncpg.DivisionByZeroError):
        await left(pool, f"BEGIN; SET ROLE none; CREATE TEMP TABLE {role}_t ()", "SELECT 1 / 0")
    assert await pool.fetchval("SELECT count(*) FROM pg_class WHERE relpersistence = 't'") == 0


async def test_what_the_startup_packet_said_is_kept(server, role):
    url = server.url(user=role, application_name="own", schema=role)
    async with GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=60_000)) as pool:
        await left(pool, "SET application_name = 'another'; SET search_path = pg_catalog; SET idle_session_timeout = 0")
        assert await pool.fetchval("SHOW application_name") == "own"
        assert await pool.fetchval("SHOW search_path") == f'"{role}"'
        assert await pool.fetchval("SHOW idle_session_timeout") == "60250ms"


# Names.

OWN = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"


@pytest.mark.parametrize(
    "statement",
    ["PREPARE p AS SELECT 1", 'PREPARE "a ""name" AS SELECT 1', "DO $$ BEGIN EXECUTE 'PREPARE p AS SELECT 1'; END $$"],
)
@pytest.mark.parametrize("way", ["execute", "fetch"])
async def test_a_prepared_name_does_not_reach_the_next_borrower(pool, statement, way):
    for _ in range(3):
        async with pool.acquire() as connection:
            await getattr(connection, way)(statement)
            assert await connection.fetchval(OWN) == 1
        assert await pool.fetchval(OWN) == 0


async def test_a_prepared_name_does_not_even_where_borrowers_between_leave_none(pool):
    for _ in range(3):
        async with pool.acquire() as connection:
            await connection.fetch("PREPARE p AS SELECT 1")  # known to asyncpg, from the second time on
        for _ in range(2):
            assert await pool.fetchval(OWN) == 0


async def test_the_drivers_own_statements_go_on(pool):
    names = "SELECT array_agg(name ORDER BY name) FROM pg_prepared_statements WHERE NOT from_sql"
    await pool.fetchval(names)
    before = await pool.fetchval(names)
    await left(pool, "PREPARE p AS SELECT 1")
    assert await pool.fetchval(names) == before


# How it is sent.


async def test_it_takes_one_round_trip_with_whatever_was_left(proxy: TcpProxy, url_via_tcp_proxy: str):
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        for _ in range(2):
            await pool.fetchval("SELECT 1")
            await at_rest(pool)
        for leave in ([], ["SET work_mem = '1MB'"], ["BEGIN", "CREATE TEMP TABLE t ()"]):
            before = proxy.round_trips
            async with pool.acquire() as connection:
                for statement in leave:
                    await connection.execute(statement)
                await connection.fetchval("SELECT 1")
            await at_rest(pool)
            assert proxy.round_trips - before == len(leave) + 1 + 1, leave


# Servers that refuse a part.


@pytest.fixture
def database(server: Cluster, role: str):
    """A database of its own, whose catalogue may be changed."""
    server.psql(f"CREATE DATABASE {role} OWNER {role}")
    yield role
    server.psql(f"DROP DATABASE {role} WITH (FORCE)")


LOCKS, NAMES = "pg_advisory_unlock_all()", "pg_prepared_statement()"


@pytest.mark.parametrize(
    ("function", "told"),
    [(LOCKS, "advisory locks (42501)"), (NAMES, "names of PREPARE (42501)")],
)
async def test_a_part_that_the_server_refuses_is_left_out_and_told_once(server, database, caplog, function, told):
    server.psql(f"REVOKE EXECUTE ON FUNCTION {function} FROM public", database=database)
    async with GuardedPool(DatabaseSettings(url=server.url(database=database, user=database))) as pool:
        for _ in range(10):
            await left(pool, "SET work_mem = '1MB'; CREATE TEMP TABLE t (); BEGIN")
            assert await pool.fetchval("SHOW work_mem") == "4MB"
        assert (pool.stats()["connects"], pool.stats()["closed"]) == (1, 0)
        await pool.disconnect()
        await left(pool, "SELECT 1")
        await pool.ping()
    texts = [text for record in caplog.records if "refuses" in (text := record.getMessage())]
    assert len(texts) == 1
    assert told in texts[0]
    assert "Grant" in texts[0]


async def test_a_missing_language_is_no_reason_to_keep_a_name(server, database):
    """Without PL/pgSQL the names cannot be dropped one by one, so that session is not lent again."""
    server.psql("DROP EXTENSION plpgsql", database=database)
    async with GuardedPool(DatabaseSettings(url=server.url(database=database, user=database))) as pool:
        for _ in range(2):
            await left(pool, "PREPARE p AS SELECT 1")
        await pool.ping()
        assert pool.stats()["connects"] == 3


@pytest.mark.parametrize("lacking", [False, True], ids=["alone", "besides-a-part-that-is-refused"])
async def test_a_part_that_fails_for_once_ends_the_session(server, database, caplog, lacking):
    """A table that somebody else has locked cannot be dropped in time: that is no reason to go on without."""
    server.psql(f"ALTER ROLE {database} SET lock_timeout = '20ms'")
    if lacking:
        server.psql(f"REVOKE EXECUTE ON FUNCTION {LOCKS} FROM public", database=database)
    url = server.url(database=database, user=database)
    locker = await asyncpg.connect(server.url(database=database), ssl=False)
    try:
        async with GuardedPool(DatabaseSettings(url=url)) as pool:
            async with pool.acquire() as connection:
                await connection.execute("CREATE TEMP TABLE t AS SELECT 1; SET work_mem = '1MB'")
                table = await connection.fetchval("SELECT 't'::regclass::oid::text")
                schema = await connection.fetchval("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
                await locker.execute(f"BEGIN; LOCK TABLE {schema}.t")
                assert await locker.fetchval("SELECT count(*) FROM pg_locks WHERE relation::text = $1", table) > 0
            await at_rest(pool)
            await locker.execute("ROLLBACK")
            assert await pool.fetchval("SHOW work_mem") == "4MB"
            assert (pool.stats()["connects"], pool.stats()["closed"]) == (2, 1)
    finally:
        await locker.close()
    assert "temporary tables" not in caplog.text


async def reset_by(platform: Platform, *, times: int) -> list[list[str]]:
    """What the platform is asked after each of some borrows."""
    asked = []
    async with platform.serve() as url, GuardedPool(DatabaseSettings(url=url)) as pool:
        for _ in range(times):
            async with pool.acquire():
                platform.asked.clear()
            await at_rest(pool)
            asked.append(platform.asked.copy())
        assert pool.stats()["connects"] == platform.logins == 1
    return asked


async def test_a_platform_without_a_statement_is_asked_for_the_others(caplog):
    """As YugabyteDB answers to UNLISTEN."""
    platform = Platform(lambda sql: "0A000" if "UNLISTEN" in sql else None)
    first, *later = await reset_by(platform, times=4)
    assert "UNLISTEN *" in first
    assert later[0] == later[1] == later[2]
    assert len(later[0]) == 1
    assert "UNLISTEN" not in later[0][0]
    assert "DISCARD TEMP" in later[0][0]
    assert [record.getMessage().count("listeners (0A000)") for record in caplog.records] == [1]


async def test_a_platform_that_takes_one_statement_at_a_time_gets_them_so(caplog):
    """As Aurora DSQL does."""
    platform = Platform(lambda sql: "0A000" if ";" in sql else None)
    first, *later = await reset_by(platform, times=3)
    assert ";" in first[0]
    for asked in later:
        assert {part.sql for part in USUAL} <= set(asked)
        assert not any(";" in sql for sql in asked)
    assert not caplog.records


async def test_a_reset_that_fails_otherwise_costs_the_session_and_nothing_is_left_out(caplog):
    platform = Platform(lambda sql: "53200" if "RESET ALL" in sql and platform.logins == 1 else None)
    async with platform.serve() as url, GuardedPool(DatabaseSettings(url=url)) as pool:
        for _ in range(3):
            async with pool.acquire():
                platform.asked.clear()
            await at_rest(pool)
        assert all(part.sql in platform.asked[-1] for part in USUAL[1:])
        assert (pool.stats()["connects"], pool.stats()["closed"]) == (2, 1)
    assert not caplog.records


async def test_a_borrower_may_drop_the_name_that_the_reset_uses(pool):
    for _ in range(2):
        for _ in range(3):
            await pool.fetchval("SELECT 1")
        await left(pool, "DEALLOCATE asyncdb_guard_unlock")
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT pg_advisory_lock(7), set_config('work_mem', '1MB', false)")
        assert await pool.fetchval("SHOW work_mem") == "4MB"
        assert await pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_the_reset_leaves_one_name_and_keeps_it(pool):
    names = "SELECT array_agg(name) FROM pg_prepared_statements WHERE from_sql"
    for _ in range(3):
        await pool.execute("SELECT 1")
        assert await pool.fetchval(names) in (None, ["asyncdb_guard_unlock"])
    await left(pool, "PREPARE p AS SELECT 1")
    assert await pool.fetchval(names) == ["asyncdb_guard_unlock"]


# The plan itself.


def refused(sqlstate: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": sqlstate, "M": "no"})


@pytest.mark.parametrize(
    ("sqlstate", "any_part", "rights"),
    [
        ("0A000", True, True),
        ("42601", True, True),
        ("42501", True, False),
        ("42883", True, False),
        ("57014", False, False),
        ("53200", False, False),
        ("22023", False, False),
    ],
)
def test_only_what_is_so_for_good_is_left_out(sqlstate, any_part, rights):
    error = refused(sqlstate)
    assert lacks(error) is any_part
    assert lacks(error, USUAL[-1]) is any_part
    assert lacks(error, AUTHORIZATION) is rights


def test_a_server_that_refuses_all_of_it_is_still_asked_something(caplog):
    plan = ResetPlan()
    with caplog.at_level(logging.WARNING):
        plan.refuse({part: refused("0A000") for part in USUAL})
    assert plan.parts() == []
    assert plan.usual == "SELECT 1"
    assert "temporary tables (0A000)" in caplog.text
