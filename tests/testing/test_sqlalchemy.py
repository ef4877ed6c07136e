"""SQLAlchemy's engine over the pools for tests."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from asyncdb_guard import CircuitOpenError, DatabaseSettings, GuardedPool
from asyncdb_guard.sqlalchemy import create_async_engine
from asyncdb_guard.testing import RolledBackError, WatchedPool, database_down, open_circuit, rolled_back

INSERT = text("INSERT INTO item (name) VALUES (:name)")
NAMES = "SELECT array_agg(name ORDER BY id) FROM item"


async def test_sessions_leave_no_trace(base: GuardedPool) -> None:
    async with rolled_back(base) as pool:
        engine = create_async_engine(pool)
        async with AsyncSession(engine) as session:
            await session.execute(INSERT, {"name": "second"})
            await session.commit()
            with pytest.raises(IntegrityError):
                await session.execute(INSERT, {"name": "second"})
            await session.rollback()
            await session.execute(INSERT, [{"name": "third"}, {"name": "fourth"}])
            async with session.begin_nested() as nested:
                await session.execute(INSERT, {"name": "undone"})
                await nested.rollback()
            await session.commit()
        assert pool.left_open == []
        async with engine.connect() as connection:
            await connection.execute(INSERT, {"name": "undone"})
        async with engine.connect() as connection:
            assert [one async for (one,) in await connection.stream(text("SELECT 1"))] == [1]
            await connection.rollback()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT * FROM nothing_of_that_name"))
            await connection.execute(INSERT, {"name": "fifth"})
        assert await pool.fetchval(NAMES) == ["first", "second", "third", "fourth", "fifth"]
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="SERIALIZABLE")
            with pytest.raises(RolledBackError, match="isolation='serializable'"):
                await connection.execute(text("SELECT 1"))
        with open_circuit(pool), pytest.raises(CircuitOpenError):
            await engine.connect()
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            with database_down(pool), pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1"))
            assert connection.invalidated
        assert pool.left_open == []
    assert await base.fetchval(NAMES) == ["first"]


async def test_a_watched_pool_knows_what_sqlalchemy_has_returned(url: str) -> None:
    async with WatchedPool(DatabaseSettings(url=url)) as pool:
        async with create_async_engine(pool).connect() as connection:
            await connection.execute(text("SELECT 1"))
            assert pool.left_open[0].startswith("tests/testing/test_sqlalchemy.py:")
        assert pool.left_open == []
