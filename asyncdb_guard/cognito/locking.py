"""The lock under which a user's row is written: Cognito's tries for one user can overlap."""

from __future__ import annotations

import hashlib
from typing import Any

from asyncdb_guard.cognito.event import CognitoUser, Subject

ISOLATION = "read_committed"
"""Of a transaction that takes the lock. Under REPEATABLE READ, which the role may default to, its snapshot would be
older than the lock, and would not show what the other try has written."""


async def lock(conn: Any, subject: Subject) -> None:
    """Wait for the advisory lock of this user or machine, and keep it until the end of the transaction."""
    await conn.execute("SELECT pg_advisory_xact_lock($1)", lock_id(subject))


def lock_id(subject: Subject) -> int:
    """The number of the lock: a signed 64-bit integer, as PostgreSQL requires."""
    kind, name = ("provision", subject.sub) if isinstance(subject, CognitoUser) else ("client", subject.client_id)
    digest = hashlib.sha256(f"asyncdb_guard {kind} {subject.user_pool_id} {name}".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)
