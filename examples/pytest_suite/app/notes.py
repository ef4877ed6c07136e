"""What the application does with its tables. Every function is given the pool, or a connection of it."""

from __future__ import annotations

from asyncdb_guard import Connection, GuardedPool
from asyncdb_guard.cognito import CognitoUser


class UnknownAuthorError(Exception):
    """Nobody with this sub has signed up."""


async def write_notes(pool: GuardedPool, sub: str, texts: list[str]) -> int:
    """Write all notes or none; return how many the author has now."""
    async with pool.transaction() as conn:
        author = await conn.fetchval("SELECT id FROM app_user WHERE cognito_sub = $1", sub)
        if author is None:
            raise UnknownAuthorError
        await conn.executemany("INSERT INTO note (author, text) VALUES ($1, $2)", [(author, text) for text in texts])
        count: int = await conn.fetchval("SELECT count(*) FROM note WHERE author = $1", author)
        return count


async def notes_of(pool: GuardedPool, sub: str) -> list[str]:
    """The author's notes, in the order in which they were written."""
    rows = await pool.fetch(
        "SELECT text FROM note JOIN app_user ON app_user.id = author WHERE cognito_sub = $1 ORDER BY note.id", sub
    )
    return [row["text"] for row in rows]


async def claims(conn: Connection, user: CognitoUser) -> dict[str, object]:
    """What the tokens of a user say."""
    row = await conn.fetchrow("SELECT role FROM app_user WHERE cognito_sub = $1", user.sub)
    return dict(row) if row else {}


async def provision(conn: Connection, user: CognitoUser) -> None:
    """Write a user who has just signed up."""
    await conn.execute(
        "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING", user.sub, user.email
    )
