"""The log of slow statements: a lent connection that times each of its statements. Only SLOW_STATEMENT_MS lends it.

It is a class of its own, so that the other one pays nothing for it. A record has the text of a statement, cut short,
and never its arguments.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Generator
from inspect import signature
from itertools import islice
from types import TracebackType
from typing import Any

from asyncdb_guard import clock
from asyncdb_guard.call_site import caller
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.connect.lent_statements import (
    LentCursor,
    LentCursorFactory,
    LentCursorIterator,
    LentStatement,
    LentTransaction,
    as_lent,
    bounds_of,
    text_of,
)
from asyncdb_guard.events import logger
from asyncdb_guard.redaction import type_name

TEXT_MAX = 500
"""Characters of a statement in the log."""

_CUT = " …"

_COPIES = {
    "copy_from_table": "COPY {} TO STDOUT",
    "copy_to_table": "COPY {} FROM STDIN",
    "copy_records_to_table": "COPY {} FROM STDIN",
}
"""What the log shows of a COPY, whose text asyncpg builds itself."""

_WITH_TEXT = ("execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "copy_from_query")
"""The methods whose first argument is a statement."""

_TRANSACTION = {
    "start": "the start of a transaction",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "__aexit__": "the end of a transaction",
}


class TimedConnection(LentConnection):
    """A connection for one borrow that logs its slow statements."""

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> LentTransaction:
        begun = super().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        return as_lent(begun, TimedTransaction)

    async def prepare(self, query: str, **options: Any) -> LentStatement:
        with _Timing(query, self.bounds.slow):
            statement = await super().prepare(query, **options)
        return as_lent(statement, TimedStatement)

    async def prepare_cached(self, query: str) -> LentStatement:
        with _Timing(query, self.bounds.slow):
            statement = await super().prepare_cached(query)
        return as_lent(statement, TimedStatement)

    def cursor(self, query: str, *arguments: Any, **options: Any) -> LentCursorFactory:
        return as_lent(super().cursor(query, *arguments, **options), TimedCursorFactory)


class TimedTransaction(LentTransaction):
    __slots__ = ()


class TimedStatement(LentStatement):
    __slots__ = ()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        return as_lent(super().cursor(*arguments, **options), TimedCursorFactory)


class TimedCursorFactory(LentCursorFactory):
    __slots__ = ()

    def __aiter__(self) -> Any:
        return as_lent(super().__aiter__(), TimedCursorIterator)

    def __await__(self) -> Generator[Any, None, Any]:
        with _of_resource(self):
            cursor = yield from super().__await__()
        return as_lent(cursor, TimedCursor)


class TimedCursorIterator(LentCursorIterator):
    __slots__ = ()


class TimedCursor(LentCursor):
    __slots__ = ()


class _Timing:
    """Times the statement in a `with` block, and logs it if it was slow."""

    __slots__ = ("_since", "_slow", "_text")

    _since: Instant

    def __init__(self, text: str, slow: float) -> None:
        self._text = text
        self._slow = slow

    def __enter__(self) -> None:
        self._since = clock.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = elapsed(self._since, clock.now())
        if seconds < self._slow:
            return
        statement, where = _shown(self._text), caller()
        logger.warning(
            "A statement %s %.2f s at %s, longer than LAMBDA_DATABASE_SLOW_STATEMENT_MS: %s",
            _outcome(error),
            seconds,
            where,
            statement,
            extra={"seconds": seconds, "where": where, "statement": statement},
        )


def _outcome(error: BaseException | None) -> str:
    if error is None or isinstance(error, StopAsyncIteration):
        return "took"
    if isinstance(error, asyncio.CancelledError):
        return "was cancelled after"
    return f"failed ({type_name(error)}) after"


def _shown(text: object) -> str:
    """A statement in one line of at most TEXT_MAX characters."""
    line = " ".join(str(text)[: 4 * TEXT_MAX].split())
    short = line if len(line) <= TEXT_MAX else line[: TEXT_MAX - len(_CUT)] + _CUT
    return "".join(letter if letter.isprintable() else "?" for letter in short)


def _of_resource(resource: Any, text: str | None = None) -> _Timing:
    bounds = bounds_of(resource)
    # after the end of a borrow asyncpg refuses the call at once
    slow = bounds.slow if bounds is not None else math.inf
    return _Timing(text_of(resource) if text is None else text, slow)


def _timed_with_text(name: str, template: str = "{}") -> Any:
    method = getattr(LentConnection, name)
    first = next(islice(signature(method).parameters, 1, None))

    @functools.wraps(method)
    async def call(self: TimedConnection, *arguments: Any, **options: Any) -> Any:
        text = arguments[0] if arguments else options.get(first)
        with _Timing(template.format(text), self.bounds.slow):
            return await method(self, *arguments, **options)

    return call


def _timed(kind: type[Any], name: str, text: str | None = None) -> Any:
    method = getattr(kind, name)

    @functools.wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        with _of_resource(self, text):
            return await method(self, *arguments, **options)

    return call


for _name in _WITH_TEXT:
    setattr(TimedConnection, _name, _timed_with_text(_name))
for _name, _template in _COPIES.items():
    setattr(TimedConnection, _name, _timed_with_text(_name, _template))
for _name, _text in _TRANSACTION.items():
    setattr(TimedTransaction, _name, _timed(LentTransaction, _name, _text))
for _kind, _names in (
    (TimedStatement, ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany", "explain")),
    (TimedCursorIterator, ("__anext__",)),
    (TimedCursor, ("fetch", "fetchrow", "forward")),
):
    for _name in _names:
        setattr(_kind, _name, _timed(_kind, _name))
