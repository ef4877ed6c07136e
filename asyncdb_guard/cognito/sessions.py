"""A callback's turn with the database: one connection, one deadline, and one word for "not available"."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.errors import CircuitOpenError, DatabaseUnavailableError, GuardError, TriggerFailedError
from asyncdb_guard.judgement import Verdict, is_lost, judge, sqlstate_of
from asyncdb_guard.metrics import LoadMetrics

if TYPE_CHECKING:
    from asyncdb_guard.pool import GuardedPool

T = TypeVar("T")

_STOPPED = "57014"
"""query_canceled: the server's own statement_timeout, or an administrator."""


class SessionLostError(DatabaseUnavailableError):
    """The session died under the callback. A read may be tried once more."""


class StatementFailedError(DatabaseUnavailableError):
    """A statement took too long, or the server had no means to run it."""


class CallbackError(GuardError):
    """The callback raised what only a trigger raises."""


async def with_connection(
    pool: GuardedPool,
    deadline: Deadline,
    work: Callable[[Any], Awaitable[T]],
    metrics: LoadMetrics | None = None,
) -> T:
    """Run `work(conn)` on a borrowed connection until the deadline.

    Raises DatabaseUnavailableError for everything that the database, or the lack of time, is to blame for; whatever
    else `work` raises passes through. The breaker has judged the original by then.
    """
    deadline.check()
    lost = False
    began = time.monotonic()
    try:
        async with pool.acquire(timeout=min(pool.settings.connect_timeout, deadline.remaining)) as conn:
            if metrics is not None:
                metrics.acquired(time.monotonic() - began)
            try:
                return await deadline.bound(work(conn))
            except BaseException:
                lost = conn.is_closed()
                raise
    except CircuitOpenError:
        if metrics is not None:
            metrics.rejected()
        raise
    except DatabaseUnavailableError:
        raise
    except TriggerFailedError as error:
        refused = type(error).__name__
    except Exception as error:
        if is_lost(error, lost=lost):
            raise SessionLostError("The session was lost.") from error
        if judge(error, lost=lost) is Verdict.FAILURE or sqlstate_of(error) == _STOPPED:
            raise StatementFailedError("A statement did not end well.") from error
        raise
    # its text is the callback's own, so neither users nor the log may have it
    raise CallbackError(f"The callback raised a {refused}.")
