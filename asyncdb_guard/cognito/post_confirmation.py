"""The post confirmation trigger: writes a user who confirmed the sign-up to the database."""

from __future__ import annotations

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
from asyncdb_guard.cognito.locking import ISOLATION, lock
from asyncdb_guard.cognito.statements import refusal
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
        try:
            await self._runner.run(self._provision, user, deadline)
        except Exception as error:
            raise refusal(error, self._callback)  # noqa: B904 -- `error`, or its cause
        # If this fails, so does the trigger: Cognito then runs it again, which changes nothing but the cache.
        await deadline.bound(self._store.forget(user.sub))
        return event

    async def _provision(self, conn: Any, user: CognitoUser) -> None:
        # Cognito's tries can overlap. The lock keeps another try from reading between this one's read and its write.
        async with conn.transaction(isolation=ISOLATION):
            await lock(conn, user)
            await self._callback(conn, user)
            if not conn.is_in_transaction():
                raise TransactionEndedError("The callback ended its transaction. Remove its COMMIT or ROLLBACK.")
            # If the callback swallowed an error, this raises; COMMIT alone would roll back and report success.
            await conn.execute("SELECT 1")
