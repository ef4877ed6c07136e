"""A callback's turn with the database: one connection, one deadline, and one word for "not available"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncdb_guard.cognito.deadline import GRACE, BudgetSpentError, Deadline
from asyncdb_guard.emf import LoadMetrics
from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError, DatabaseUnavailableError
from asyncdb_guard.verdict import Verdict, is_lost, judge, sqlstate_of

if TYPE_CHECKING:
    from asyncdb_guard.pool import GuardedPool

T = TypeVar("T")

_STOPPED = "57014"
"""query_canceled: the server's own statement_timeout, or an administrator."""

_NO_MEANS = "53"
"""The class of insufficient resources."""


class SessionLostError(DatabaseUnavailableError):
    """The session died under the callback. A read may be tried once more."""


class StatementFailedError(DatabaseUnavailableError):
    """A statement took too long, or the server had no means to run it."""


class CallbackRunner:
    """Gives callbacks their turns with a pool's connections; lives as long as its `CognitoTriggers`."""

    def __init__(self, pool: GuardedPool) -> None:
        self._pool = pool
        self._turns: set[asyncio.Task[None]] = set()

    async def with_connection(
        self, deadline: Deadline, work: Callable[[Any], Awaitable[T]], metrics: LoadMetrics | None = None
    ) -> T:
        """Run `work(conn)` on a borrowed connection until the deadline.

        Whatever is not over soon after that, such as a ROLLBACK on a dead path, a reset, or a callback that ignores
        its cancellation, goes on without the trigger, and the pool has its connection back when it ends.

        Raises DatabaseUnavailableError for everything that the database, or the lack of time, is to blame for;
        whatever else `work` raises passes through. The breaker judges the original.
        """
        deadline.check()
        outcome = _Outcome[T]()
        turn = asyncio.create_task(self._take_turn(deadline, work, metrics, outcome))
        self._turns.add(turn)  # a loop alone does not hold its tasks
        turn.add_done_callback(self._turns.discard)
        try:
            await asyncio.wait({turn}, timeout=deadline.remaining + GRACE)
        except asyncio.CancelledError:
            turn.cancel()
            raise
        try:
            return outcome.get()
        except AcquireTimeoutError as error:
            if deadline.remaining:
                raise
            late = error
        raise BudgetSpentError("The trigger's time was over before a connection came.") from late

    async def _take_turn(
        self,
        deadline: Deadline,
        work: Callable[[Any], Awaitable[T]],
        metrics: LoadMetrics | None,
        outcome: _Outcome[T],
    ) -> None:
        """Leave in `outcome` how it ends, and raise nothing: a SystemExit would leave the loop past the trigger."""
        began = time.monotonic()
        timeout = min(self._pool.settings.connect_timeout, deadline.remaining)
        try:
            async with self._pool.acquire(timeout=timeout) as conn:
                if metrics is not None:
                    metrics.acquired(time.monotonic() - began)
                try:
                    outcome.results = (await deadline.bound(work(conn), lambda: conn.in_statement),)
                except BaseException as error:
                    outcome.fail(error, lost=conn.is_closed())
                    raise
        except BaseException as error:
            if metrics is not None and isinstance(error, CircuitOpenError):
                metrics.rejected()
            if outcome.error is None:
                outcome.fail(error)


class _Outcome(Generic[T]):
    """How a turn ended, as far as it is known; lives until the last of turn and trigger is over."""

    __slots__ = ("_lost", "error", "results")

    def __init__(self) -> None:
        self.results: tuple[T, ...] = ()
        """What the work gave, once it ended well."""
        self.error: BaseException | None = None
        self._lost = False

    def fail(self, error: BaseException, *, lost: bool = False) -> None:
        """The turn ended with `error`; `lost`: its session was gone by then."""
        self.error = error
        self._lost = lost

    def get(self) -> T:
        """Return what the work gave, or raise what became of it."""
        error = self.error
        if error is None:
            if not self.results:
                raise BudgetSpentError("The trigger's time was over before its callback, or what that had begun.")
            return self.results[0]
        if isinstance(error, Exception) and not isinstance(error, DatabaseUnavailableError):
            if is_lost(error, lost=self._lost):
                raise SessionLostError("The session was lost.") from error
            if judge(error, lost=self._lost) is Verdict.FAILURE or _not_run(sqlstate_of(error) or ""):
                raise StatementFailedError("A statement did not end well.") from error
        raise error


def _not_run(sqlstate: str) -> bool:
    return sqlstate == _STOPPED or sqlstate[:2] == _NO_MEANS
