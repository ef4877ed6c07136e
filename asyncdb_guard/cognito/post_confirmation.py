"""The post confirmation trigger: writes a user who confirmed the sign-up to the database."""

from __future__ import annotations

import hashlib
from typing import Any

from asyncdb_guard.cognito.caching.store import ClaimsStore
from asyncdb_guard.cognito.callbacks import Callback
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.event import (
    CONFIRM_SIGN_UP,
    CognitoUser,
    TriggerEvent,
    read_confirmation_event,
    trigger_source,
)
from asyncdb_guard.cognito.invocation import CallbackRunner
from asyncdb_guard.errors import GuardError


class TransactionEndedError(GuardError):
    """A provision callback sent its own COMMIT or ROLLBACK, so that what it wrote after that had no lock."""


class PostConfirmationTrigger:
    """Provisions users in one transaction each; lives as long as its `CognitoTriggers`."""

    def __init__(self, callback: Callback, runner: CallbackRunner, store: ClaimsStore) -> None:
        self._callback = callback
        self._runner = runner
        self._store = store

    @staticmethod
    def handles(event: TriggerEvent) -> bool:
        """Whether the event is about a confirmed sign-up. Raises TriggerEventError if it is not an event."""
        return trigger_source(event) == CONFIRM_SIGN_UP

    async def answer(self, event: TriggerEvent, deadline: Deadline) -> TriggerEvent:
        """Write the event's user to the database, delete the user's cached claims, and return the event.

        Raises TriggerEventError, DatabaseUnavailableError, TransactionEndedError, CacheUnavailableError or what the
        callback raised.
        """
        user = read_confirmation_event(event)
        await self._runner.run(self._provision, user, deadline)
        # If this fails, so does the trigger: Cognito then runs it again, which changes nothing but the cache.
        await deadline.bound(self._store.forget(user.sub))
        return event

    async def _provision(self, conn: Any, user: CognitoUser) -> None:
        # Cognito's tries can overlap. The lock keeps another try from reading between this one's read and its write.
        # Under REPEATABLE READ, which the role may default to, the callback's snapshot would be older than the lock.
        async with conn.transaction(isolation="read_committed"):
            await conn.execute("SELECT pg_advisory_xact_lock($1)", _lock_id(user))
            await self._callback(conn, user)
            if not conn.is_in_transaction():
                raise TransactionEndedError("The callback ended its transaction. Remove its COMMIT or ROLLBACK.")
            # If the callback swallowed an error, this raises; COMMIT alone would roll back and report success.
            await conn.execute("SELECT 1")


def _lock_id(user: CognitoUser) -> int:
    """The advisory lock of one user: a signed 64-bit integer, as PostgreSQL requires."""
    digest = hashlib.sha256(f"asyncdb_guard provision {user.user_pool_id} {user.sub}".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)
