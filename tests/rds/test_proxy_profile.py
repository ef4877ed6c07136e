"""The proxy profile on the wire: what it sends, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.connect.pooler_connection import PoolerConnection

PINNING = ("SET", "RESET", "DISCARD", "DEALLOCATE", "PREPARE", "LISTEN", "UNLISTEN", "CLOSE", "DECLARE")


@pytest.fixture
def settings(server, role, proxy) -> DatabaseSettings:
    """Straight to a server which doesn't mind, so that all that is sent can be seen."""
    return DatabaseSettings(url=server.url(user=role, port=proxy.port, pgbouncer="true", application_name="sign-up"))


@pytest.fixture
def mood(server, role) -> str:
    """An enumeration, which asyncpg does not know."""
    server.psql(f"CREATE TYPE {role}.mood AS ENUM ('sad', 'ok'); ALTER TYPE {role}.mood OWNER TO {role}")
    return f"{role}.mood"


async def use_everything(pool: GuardedPool) -> None:
    """Each public call, with success and with failure."""
    await pool.ping()
    await pool.execute("CREATE TABLE thing (id int PRIMARY KEY, words text[])")
    await pool.execute("INSERT INTO thing VALUES ($1, $2)", 1, ["a", "b"])
    await pool.executemany("INSERT INTO thing VALUES ($1, $2)", [(number, []) for number in range(2, 20)])
    assert len(await pool.fetch("SELECT * FROM thing WHERE id < $1", 5)) == 4
    assert (await pool.fetchrow("SELECT words FROM thing WHERE id = $1", 1))["words"] == ["a", "b"]
    assert await pool.fetchval("SELECT count(*) FROM thing") == 19
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute("INSERT INTO thing VALUES ($1)", 1)
    async with pool.transaction(isolation="serializable") as connection:
        await connection.execute("DELETE FROM thing WHERE id = $1", 2)
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with pool.transaction() as connection:
            await connection.fetchval("SELECT 1 / $1::int", 0)


async def test_nothing_that_pins_is_sent(settings, proxy):
    async with GuardedPool(settings) as pool:
        await use_everything(pool)
    assert proxy.named_statements == []
    assert [sql for sql in proxy.statements if sql.lstrip().upper().startswith(PINNING)] == []
    assert [sql for sql in proxy.statements if "set_config" in sql] == []


async def test_without_the_profile_each_of_these_would_be_seen(server, role, proxy):
    """The watch of the test above sees something."""
    async with GuardedPool(DatabaseSettings(url=server.url(user=role, port=proxy.port))) as pool:
        await use_everything(pool)
    assert proxy.named_statements != []
    assert any("RESET ALL" in sql for sql in proxy.statements)


async def test_the_startup_packet_holds_what_proxies_take(settings, role, proxy):
    async with GuardedPool(settings) as pool:
        await pool.ping()
    assert proxy.startups == [
        {"client_encoding": "'utf-8'", "user": role, "database": "postgres", "application_name": "sign-up"}
    ]


async def test_a_release_sends_no_byte(settings, proxy):
    async with GuardedPool(settings) as pool:
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT $1::int", 1)
            sent = proxy.client_bytes
        await asyncio.sleep(0.05)
        assert proxy.client_bytes == sent


@pytest.mark.parametrize(("arguments", "round_trips"), [((), 1), ((1,), 2)])
async def test_what_a_statement_costs(settings, proxy, arguments, round_trips):
    statement = "SELECT $1::int" if arguments else "SELECT 1"
    async with GuardedPool(settings) as pool:
        await pool.ping()
        before = proxy.round_trips
        for _ in range(100):
            await pool.execute(statement, *arguments)
        assert proxy.round_trips - before == 100 * round_trips


async def test_a_type_that_asyncpg_has_to_look_up_changes_no_setting(settings, proxy, mood):
    async with GuardedPool(settings) as pool:
        assert await pool.fetchval(f"SELECT ARRAY['ok']::{mood}[]") == ["ok"]
        assert any("typeinfo_tree" in sql for sql in proxy.statements)
    assert not any("set_config" in sql for sql in proxy.statements)


async def test_a_cast_to_text_spares_the_look_up(settings, proxy, mood):
    async with GuardedPool(settings) as pool:
        assert await pool.fetchval(f"SELECT ARRAY[$1]::text[]::{mood}[]::text[]", "ok") == ["ok"]
        assert proxy.round_trips <= 4
    assert not any("typeinfo_tree" in sql for sql in proxy.statements)


async def test_without_the_profile_a_look_up_changes_a_setting(server, role, proxy, mood):
    """The watch of the test above sees something."""
    async with GuardedPool(DatabaseSettings(url=server.url(user=role, port=proxy.port))) as pool:
        await pool.fetchval(f"SELECT ARRAY['ok']::{mood}[]")
    assert any("set_config" in sql for sql in proxy.statements)


# A statement that was begun and not ended keeps a pooler's backend; the release ends it with one round trip.

MISFITS = {
    "value": lambda connection: connection.fetchval("SELECT $1::int", "one"),
    "number": lambda connection: connection.fetchval("SELECT $1::int"),
    "many": lambda connection: connection.executemany("SELECT $1::int", [(1,), ("one",)]),
    "prepared": lambda connection: connection.prepare("SELECT 1"),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
async def test_what_was_begun_is_ended_at_release(settings, proxy, misfit, eventually):
    async with GuardedPool(settings) as pool:
        async with pool.acquire() as connection:
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.DataError):
                await misfit(connection)
        await eventually(lambda: proxy.client_messages[-1] == b"Q")
        assert await pool.fetchval("SELECT $1::int", 1) == 1
        assert pool.stats()["connects"] == 1


async def test_a_statement_in_the_next_line_ends_it_just_as_well(settings, proxy):
    async with GuardedPool(settings) as pool:
        async with pool.acquire() as connection:
            with pytest.raises(asyncpg.DataError):
                await connection.fetchval("SELECT $1::int", "one")
            await connection.fetchval("SELECT $1::int", 1)
            sent = proxy.client_bytes
        await asyncio.sleep(0.05)
        assert proxy.client_bytes == sent


def test_asyncpg_still_has_the_names_that_tell_what_was_begun():
    for name in ("_get_statement", "_do_execute"):
        assert hasattr(asyncpg.Connection, name), f"asyncpg lost Connection.{name}: look at PoolerConnection"
        assert getattr(PoolerConnection, name) is not getattr(asyncpg.Connection, name)
    capabilities = asyncpg.connection.ServerCapabilities
    assert "jit" in capabilities._fields, "asyncpg lost ServerCapabilities.jit: look at PoolerConnection"


# The reset query, when somebody wants it


async def test_a_reset_is_sent_when_asked_for_with_one_warning(server, role, proxy, caplog):
    caplog.set_level(logging.WARNING, "asyncdb_guard")
    settings = DatabaseSettings(url=server.url(user=role, port=proxy.port, pgbouncer="true"), session_reset="always")
    async with GuardedPool(settings) as pool:
        for _ in range(3):
            await pool.execute("SET work_mem = '1MB'")
        assert await pool.fetchval("SHOW work_mem") != "1MB"
    assert len([record for record in caplog.records if "session_reset" in record.getMessage()]) == 1
    assert sum("RESET ALL" in sql for sql in proxy.statements) == 4
