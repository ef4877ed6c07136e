"""What asyncpg's pool has, too."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import aiosql
import pytest

from asyncdb_guard import ConfigurationError, DatabaseSettings, GuardedPool
from tests.support.bound import at_rest


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        yield pool


async def test_the_copies(pool: GuardedPool) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"3\n4\n"

    await pool.execute("CREATE TABLE number (n int)")
    assert await pool.copy_records_to_table("number", records=[(1,), (2,)], columns=["n"]) == "COPY 2"
    assert await pool.copy_to_table("number", source=source(), columns=["n"]) == "COPY 2"
    table, query = io.BytesIO(), io.BytesIO()
    assert await pool.copy_from_table("number", output=table, format="csv", header=True) == "COPY 4"
    assert await pool.copy_from_query("SELECT n FROM number WHERE n > $1", 2, output=query, timeout=1.0) == "COPY 2"
    assert (table.getvalue(), query.getvalue()) == (b"n\n1\n2\n3\n4\n", b"3\n4\n")
    rows = await pool.fetchmany("INSERT INTO number VALUES ($1) RETURNING n", [(5,), (6,)])
    assert [row["n"] for row in rows] == [5, 6]


async def test_the_sizes(pool: GuardedPool) -> None:
    def sizes() -> tuple[int, int, int, int]:
        return pool.get_min_size(), pool.get_size(), pool.get_idle_size(), pool.get_max_size()

    assert sizes() == (0, 0, 0, 2)
    async with pool.acquire():
        assert sizes() == (0, 1, 0, 2)
        async with pool.acquire():
            assert sizes() == (0, 2, 0, 2)
    await at_rest(pool)
    assert sizes() == (0, 2, 2, 2)
    assert not pool.is_closing()
    await pool.close()
    assert pool.is_closing()
    with pytest.raises(ConfigurationError):
        GuardedPool().get_size()


async def test_expired_connections_are_replaced(pool: GuardedPool) -> None:
    await pool.expire_connections()
    async with pool.acquire() as lent:
        pids = [lent.get_server_pid()]
        await pool.expire_connections()
        assert await lent.fetchval("SELECT 1") == 1
    pids += [await pool.fetchval("SELECT pg_backend_pid()") for _ in range(2)]
    assert pids[0] != pids[1] == pids[2]
    assert pool.stats()["replaced"] == 1


async def test_aiosql_takes_the_pool(pool: GuardedPool) -> None:
    queries = aiosql.from_str(
        """
        -- name: create_note()#
        CREATE TABLE note (id int);
        -- name: add_note(id)!
        INSERT INTO note VALUES (:id);
        -- name: notes()
        SELECT id FROM note ORDER BY id;
        """,
        "asyncpg",
    )
    await queries.create_note(pool)
    await queries.add_note(pool, id=7)
    assert [row["id"] async for row in queries.notes(pool)] == [7]
    await at_rest(pool)
