"""The statements of a lent connection: their bounds, and a name for the end that a bound put to one.

asyncpg raises a bare TimeoutError. Prepared statements, cursors and transactions are asyncpg's own objects, which get a
class of ours: it has no state, and converts that error.
"""

import functools
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import asyncpg
from asyncpg.cursor import Cursor, CursorFactory, CursorIterator
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.errors import StatementTimeoutError
from asyncdb_guard.failures import bound_of, raised_by_driver, says

T = TypeVar("T")

if TYPE_CHECKING:
    _Statement: TypeAlias = PreparedStatement[Any]
    _CursorFactory: TypeAlias = CursorFactory[Any]
    _CursorIterator: TypeAlias = CursorIterator[Any]
    _Cursor: TypeAlias = Cursor[Any]
else:
    _Statement, _CursorFactory, _CursorIterator, _Cursor = PreparedStatement, CursorFactory, CursorIterator, Cursor

ENDED = (TimeoutError, asyncpg.QueryCanceledError)
"""How a statement ends by a bound: on our side of the wire, and on the server's."""

_COMMAND_TIMEOUT = (
    "A statement took longer than {:.2f} s. Make it faster, or raise LAMBDA_DATABASE_COMMAND_TIMEOUT_MS or its"
    " timeout=."
)
_OWN_TIMEOUT = "A statement took longer than its timeout= of {:.2f} s. Make it faster, or raise that."


_COPY_TOO_SLOW = "TimeoutError"
"""asyncpg/protocol/protocol.pyx: what it tells the server about a COPY whose source is too slow, and gets back."""

_TIMER_TICK = 0.001
"""Seconds by which a timer may fire early."""


class Bounds(NamedTuple):
    """The bounds on the statements of one session."""

    command: float
    """COMMAND_TIMEOUT in seconds."""
    server: float | None = None
    """Seconds after which the server ends a statement; None if we set no bound."""
    reset: str = "RESET statement_timeout"
    """How to return to that bound after a longer one."""
    slow: float = 0.0
    """Seconds after which a statement is logged; 0 means never."""


def timed_out(error: BaseException, since: Instant, now: Instant, bounds: Bounds) -> StatementTimeoutError | None:
    """The error to raise in place of `error`, which ended a statement begun at `since`; None if no bound of ours did.

    The TimeoutError may be the borrower's own, raised in a callback that asyncpg calls; and the server cancels a
    statement for an administrator or a statement_timeout of the block's own, too.
    """
    own = bound_of(error)
    bound: float | None = (bounds.command if own == math.inf else own) - _TIMER_TICK
    if isinstance(error, TimeoutError):
        if not raised_by_driver(error):
            return None
    elif not says(error, _COPY_TOO_SLOW):
        bound = bounds.server
    if bound is None or elapsed(since, now) < bound:
        return None
    if own < math.inf:
        return StatementTimeoutError(_OWN_TIMEOUT.format(own), timeout=own)
    return StatementTimeoutError(_COMMAND_TIMEOUT.format(bounds.command), timeout=bounds.command)


def _ended(resource: Any, error: BaseException, since: Instant) -> StatementTimeoutError | None:
    bounds = bounds_of(resource)
    return timed_out(error, since, clock.now(), bounds) if bounds is not None else None


def bounds_of(resource: Any) -> Bounds | None:
    """The bounds of a statement, a cursor or a transaction; None if the borrow has ended meanwhile."""
    lent = resource._connection._proxy
    bounds: Bounds | None = lent.bounds if lent is not None else None
    return bounds


def text_of(resource: Any) -> str:
    """The text of a prepared statement or a cursor, of which asyncpg offers only the former's."""
    text: str = resource._query
    return text


def _converting(method: Any) -> Any:
    @functools.wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        since = clock.now()
        try:
            return await method(self, *arguments, **options)
        except ENDED as error:
            ended = _ended(self, error, since)
            if ended is None:
                raise
            raise ended from error

    return call


class LentTransaction(Transaction):
    __slots__ = ()


class LentStatement(_Statement):
    __slots__ = ()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        return as_lent(super().cursor(*arguments, **options), LentCursorFactory)


class LentCursorFactory(_CursorFactory):
    __slots__ = ()

    def __aiter__(self) -> Any:
        return as_lent(super().__aiter__(), LentCursorIterator)

    def __await__(self) -> Generator[Any, None, Any]:
        since = clock.now()
        try:
            cursor = yield from super().__await__()
        except ENDED as error:
            ended = _ended(self, error, since)
            if ended is None:
                raise
            raise ended from error
        return as_lent(cursor, LentCursor)


class LentCursorIterator(_CursorIterator):
    __slots__ = ()


class LentCursor(_Cursor):
    __slots__ = ()


def as_lent(resource: Any, kind: type[T]) -> T:
    """Give one of asyncpg's objects its class of ours."""
    resource.__class__ = kind
    lent: T = resource
    return lent


for _kind, _names in (
    (LentTransaction, ("start", "commit", "rollback", "__aenter__", "__aexit__")),
    (LentStatement, ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany", "explain")),
    (LentCursorIterator, ("__anext__",)),
    (LentCursor, ("fetch", "fetchrow", "forward")),
):
    for _name in _names:
        setattr(_kind, _name, _converting(getattr(_kind, _name)))
