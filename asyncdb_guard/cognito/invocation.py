"""Runs a callback: one connection, one deadline, and one kind of error for an unavailable database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from asyncdb_guard.cognito.deadline import CLEANUP_TIMEOUT, BudgetSpentError, Deadline
from asyncdb_guard.cognito.outcome import Outcome
from asyncdb_guard.errors import AcquireTimeoutError, DatabaseUnavailableError, StatementTimeoutError
from asyncdb_guard.failures import Verdict, is_lost, judge, sqlstate_of

if TYPE_CHECKING:
    from asyncdb_guard.pool import GuardedPool

S = TypeVar("S")
T = TypeVar("T")

_QUERY_CANCELED = "57014"
"""The server's own statement_timeout, or an administrator, ended the statement."""

_INSUFFICIENT_RESOURCES = "53"
"""The class of SQLSTATEs for a full disk, too little memory or too many connections."""


_LOST = (
    "The session ended while the callback was using it. The server may have restarted or failed over, or an"
    " administrator ended the session; check the server's log."
)
_SLOW = (
    "{} An index on the column by which it looks the user up may help; otherwise find what holds a lock that it waits"
    " for."
)
_CANCELED = (
    "The server ended a statement: its statement_timeout, for the role or the database, is shorter than the statement,"
    " or an administrator cancelled it. Make the statement faster, or raise that timeout."
)
_OUT_OF_RESOURCES = "The server lacks the resources for a statement. Check its disk, memory and connections."
_FAILED = "The database failed during a statement. Check the log of the server, and of a proxy in front of it."


class SessionLostError(DatabaseUnavailableError):
    """The session ended while the callback was using it. A read may be retried."""


class StatementFailedError(DatabaseUnavailableError):
    """A statement took too long, or the server lacked the resources to run it."""


class CallbackRunner:
    """Runs callbacks on a pool's connections; lives as long as its `CognitoTriggers`."""

    def __init__(self, pool: GuardedPool) -> None:
        self._pool = pool
        self._tasks: set[asyncio.Task[Outcome[Any]]] = set()

    async def run(
        self,
        callback: Callable[[Any, S], Awaitable[T]],
        subject: S,
        deadline: Deadline,
    ) -> T:
        """Run `callback(conn, subject)` on a borrowed connection until the deadline, and return its result.

        Work that ignores its cancellation, such as a ROLLBACK on a dead path, continues in the background and keeps
        its connection until it ends.

        Raises DatabaseUnavailableError if the database or the lack of time is to blame; any other error of the
        callback passes through. The breaker judges the original error.
        """
        deadline.check()
        task = asyncio.create_task(self._borrow_and_run(callback, subject, deadline))
        self._tasks.add(task)  # the event loop itself holds its tasks only weakly
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task}, timeout=deadline.remaining + CLEANUP_TIMEOUT)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            raise BudgetSpentError("The trigger's deadline passed before its callback ended.")
        return task.result().get()

    async def _borrow_and_run(
        self,
        callback: Callable[[Any, S], Awaitable[T]],
        subject: S,
        deadline: Deadline,
    ) -> Outcome[T]:
        """Raises nothing: a SystemExit, for example, would leave through the event loop and bypass the trigger."""
        lost = False
        timeout = min(self._pool.settings.connect_timeout, deadline.remaining)
        try:
            async with self._pool.acquire(timeout=timeout) as conn:
                try:
                    return Outcome(await deadline.bound(callback(conn, subject), lambda: conn.in_statement))
                finally:
                    lost = conn.is_closed()
        except BaseException as error:
            return Outcome(error=_classify(error, lost=lost, out_of_time=not deadline.remaining))


def _classify(error: BaseException, *, lost: bool, out_of_time: bool) -> BaseException:
    """Return `error`, or the DatabaseUnavailableError that it amounts to."""
    if isinstance(error, AcquireTimeoutError) and out_of_time:
        return _caused(BudgetSpentError("The trigger's deadline passed before a connection was available."), error)
    if isinstance(error, DatabaseUnavailableError) or not isinstance(error, Exception):
        return error
    if is_lost(error, lost=lost):
        return _caused(SessionLostError(_LOST), error)
    sqlstate = sqlstate_of(error) or ""
    if isinstance(error, StatementTimeoutError) and judge(error) is Verdict.FAILURE:
        return _caused(StatementFailedError(_SLOW.format(error)), error)
    if sqlstate == _QUERY_CANCELED:
        return _caused(StatementFailedError(_CANCELED), error)
    if sqlstate[:2] == _INSUFFICIENT_RESOURCES:
        return _caused(StatementFailedError(_OUT_OF_RESOURCES), error)
    if judge(error, lost=lost) is Verdict.FAILURE:
        return _caused(StatementFailedError(_FAILED), error)
    return error


def _caused(error: DatabaseUnavailableError, cause: BaseException) -> DatabaseUnavailableError:
    error.__cause__ = cause
    return error
