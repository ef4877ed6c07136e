"""The application's own functions, on a pool that leaves no trace."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from app import notes

from asyncdb_guard import AcquireTimeoutError, GuardedPool
from asyncdb_guard.testing import RolledBackError, recorded


async def test_notes_are_read_in_the_order_in_which_they_were_written(rolled_back_pool: GuardedPool) -> None:
    assert await notes.write_notes(rolled_back_pool, "ada", ["one", "two"]) == 2
    assert await notes.notes_of(rolled_back_pool, "ada") == ["one", "two"]


async def test_the_test_before_has_left_no_trace(rolled_back_pool: GuardedPool) -> None:
    assert await notes.notes_of(rolled_back_pool, "ada") == []
    assert await rolled_back_pool.fetchval("INSERT INTO note (author, text) VALUES (1, 'x') RETURNING id") == 1


@pytest.mark.parametrize("run", range(3))
async def test_numbers_begin_where_they_began(rolled_back_pool: GuardedPool, run: int) -> None:
    assert await rolled_back_pool.fetchval("INSERT INTO note (author, text) VALUES (1, 'x') RETURNING id") == 1


async def test_all_notes_are_written_or_none(rolled_back_pool: GuardedPool) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await notes.write_notes(rolled_back_pool, "ada", ["good", ""])
    assert await notes.notes_of(rolled_back_pool, "ada") == []


async def test_an_unknown_author_is_an_error(rolled_back_pool: GuardedPool) -> None:
    with pytest.raises(notes.UnknownAuthorError):
        await notes.write_notes(rolled_back_pool, "nobody", ["x"])


async def test_a_note_needs_its_author_at_the_end_of_the_transaction(rolled_back_pool: GuardedPool) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await rolled_back_pool.execute("INSERT INTO note (author, text) VALUES (99, 'x')")


async def test_a_statement_that_failed_does_not_spoil_the_next(rolled_back_pool: GuardedPool) -> None:
    async with rolled_back_pool.acquire() as conn:
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.execute("INSERT INTO app_user (cognito_sub) VALUES ('ada')")
        assert await conn.fetchval("SELECT count(*) FROM app_user") == 1


async def test_writers_come_one_after_the_other(rolled_back_pool: GuardedPool) -> None:
    await asyncio.gather(*(notes.write_notes(rolled_back_pool, "ada", [str(number)]) for number in range(5)))
    assert sorted(await notes.notes_of(rolled_back_pool, "ada")) == ["0", "1", "2", "3", "4"]


async def test_a_transaction_by_hand_is_told(rolled_back_pool: GuardedPool) -> None:
    with pytest.raises(RolledBackError, match="BEGIN"):
        await rolled_back_pool.execute("BEGIN")


async def test_a_borrow_within_a_borrow_is_told_with_its_place(rolled_back_pool: GuardedPool) -> None:
    async with rolled_back_pool.acquire():
        with pytest.raises(AcquireTimeoutError, match=r"test_notes\.py"):
            async with rolled_back_pool.acquire(timeout=0.01):
                pass


async def test_what_needs_no_transaction_takes_the_plain_pool(guarded_pool: GuardedPool) -> None:
    await guarded_pool.execute("VACUUM note")
    with recorded(guarded_pool) as events:
        await guarded_pool.ping()
    assert events.names == []


async def test_a_database_has_the_schema(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT role FROM app_user WHERE cognito_sub = 'ada'") == "admin"
    await connection.close()
