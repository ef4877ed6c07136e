"""What a borrower holds: a proxy for asyncpg's connection that stops working when the block ends."""

from __future__ import annotations

import functools
from typing import Any

from asyncpg.pool import PoolConnectionProxy

from asyncdb_guard import clock
from asyncdb_guard.connect.lent_statements import (
    ENDED,
    Bounds,
    LentCursorFactory,
    LentStatement,
    LentTransaction,
    as_lent,
    timed_out,
)
from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.startup import STATEMENT_TIMEOUT_GRACE
from asyncdb_guard.events import logger

_UNGUARDED = ("execute", "copy_from_query", "copy_from_table", "copy_to_table", "copy_records_to_table")
"""Statements that asyncpg runs outside its exclusive section, so that it cannot tell whether one is still running."""

_GUARDED = ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany")
"""The other methods that run one statement and take a `timeout`."""

_CALLBACKS = ("log_listener", "termination_listener", "query_logger")
"""Kinds of callbacks that asyncpg keeps on a connection; each has a method to add one and a method to remove it."""

_CODECS = ("set_type_codec", "set_builtin_type_codec", "reset_type_codec")
"""Methods that change how a connection decodes a type. No reset undoes that."""


class Leftovers:
    """What a borrower leaves in its session."""

    __slots__ = ("callbacks", "changed_codecs", "listeners", "raised_server_bound", "ran_scripts", "running")

    def __init__(self) -> None:
        self.running = 0
        """How many calls of the methods in `_UNGUARDED` are running."""
        self.ran_scripts = False
        """Whether SQL was run that may contain several statements, such as a PREPARE."""
        self.changed_codecs = False
        self.raised_server_bound = False
        self.listeners: tuple[tuple[str, Any], ...] = ()
        """The channels that the borrower listens to, with their callbacks."""
        self.callbacks: tuple[tuple[str, Any], ...] = ()
        """The other callbacks that the borrower added, each with its kind."""


_NOTHING = Leftovers()


class LentConnection(PoolConnectionProxy):
    """A connection for one borrow: asyncpg's, with all its methods. It records what the borrower leaves behind."""

    closed_by_borrower = False
    """Whether the borrower closed it: then the session does not count as lost."""
    listens = False
    """Whether it was borrowed by `GuardedPool.listen()`."""
    acquisition: Any = None
    """What `release()` ends; None in an `async with`, which ends itself."""
    released = False
    """Whether the borrow is over: asyncpg refuses whatever comes now."""
    leftovers = _NOTHING
    """What it leaves behind: a record of its own as soon as there is anything to note."""

    def __init__(self, holder: Any, connection: Any, bounds: Bounds) -> None:
        # asyncpg/pool.py: what its own does, in fewer steps
        self._holder = holder
        self._con = connection
        connection._proxy = self
        self.bounds = bounds
        """The bounds on each statement."""

    @property
    def in_statement(self) -> bool:
        """Whether a statement was interrupted that the server may still be running."""
        bare: Any = self
        return bool(bare._protocol._is_cancelling())

    async def close(self, *, timeout: float | None = None) -> None:
        """End the session within `timeout` seconds; the pool opens another one when it is needed."""
        self.closed_by_borrower = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """Cut the connection; the pool opens another one when it is needed."""
        self.closed_by_borrower = True
        super().terminate()

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> LentTransaction:
        """A transaction, or a savepoint inside of one, for `async with`; the arguments are asyncpg's."""
        begun = super().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        return as_lent(begun, LentTransaction)

    async def prepare(self, query: str, **options: Any) -> LentStatement:
        """Prepare a statement, which works until the borrow ends. Raises StatementTimeoutError."""
        return as_lent(await _prepare(self, query, **options), LentStatement)

    def cursor(self, query: str, *arguments: Any, **options: Any) -> LentCursorFactory:
        """A cursor, for `async for` or `await`, inside of a transaction; the arguments are asyncpg's."""
        return as_lent(super().cursor(query, *arguments, **options), LentCursorFactory)

    async def add_listener(self, channel: str, callback: Any) -> None:
        """LISTEN until the borrow ends. For longer, use `GuardedPool.listen`."""
        if not (self.listens or self.leftovers.listeners):
            logger.warning(
                "A listener was added to a connection that ends when it is idle for LAMBDA_DATABASE_IDLE_TIMEOUT_MS."
                " Use pool.listen(), which is exempt from that and listens again after a loss."
            )
        await super().add_listener(channel, callback)
        own_leftovers(self).listeners += ((channel, callback),)

    async def remove_listener(self, channel: str, callback: Any) -> None:
        """Undo `add_listener` of the same channel and callback."""
        await super().remove_listener(channel, callback)
        own_leftovers(self).listeners = _without(self.leftovers.listeners, (channel, callback))

    async def prepare_cached(self, query: str) -> LentStatement:
        """Like `prepare`, but from asyncpg's statement cache: no round trip for a statement that the session knows."""
        bare: Any = self
        connection = bare if bare._con is None else bare._con  # the former raises, as the session has ended
        since = clock.now()
        try:
            return as_lent(await connection._prepare(query, use_cache=True), LentStatement)
        except ENDED as error:
            ended = timed_out(error, since, clock.now(), self.bounds)
            if ended is None:
                raise
            raise ended from error

    def confirm_synced(self) -> None:
        """All statements of this borrow have run to their end, so no pooler still holds a backend for one."""
        bare: Any = self
        # asyncpg/connection.py: ConnectionMeta makes isinstance() true for every connection
        if type(bare._con) is PoolerConnection:
            bare._con.keeps_backend = False

    async def with_longer_bound(self, method: Any, timeout: float, arguments: Any, options: Any) -> Any:
        """Run one statement that may take longer than the server's bound. This takes two additional round trips."""
        execute = PoolConnectionProxy.execute
        milliseconds = round((timeout + STATEMENT_TIMEOUT_GRACE) * 1000)
        own_leftovers(self).raised_server_bound = True
        await execute(self, f"SET statement_timeout = {milliseconds}")
        answer = await method(self, *arguments, timeout=timeout, **options)
        await execute(self, self.bounds.reset)
        own_leftovers(self).raised_server_bound = False
        return answer


def own_leftovers(lent: LentConnection) -> Leftovers:
    """The record to note in what this borrow leaves behind."""
    if lent.leftovers is _NOTHING:
        lent.leftovers = Leftovers()
    return lent.leftovers


def _without(items: tuple[Any, ...], item: object) -> tuple[Any, ...]:
    return tuple(one for one in items if one != item)


def _guarded(name: str) -> Any:
    method = getattr(PoolConnectionProxy, name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        since = clock.now()
        bare: Any = self
        connection: Any = bare._con
        try:
            if timeout is None and connection is not None:  # without asyncpg's own detour
                return await getattr(connection, name)(*arguments, **options)
            bound = self.bounds.server
            if timeout is None or bound is None or timeout <= bound:
                return await method(self, *arguments, timeout=timeout, **options)
            return await self.with_longer_bound(method, timeout, arguments, options)
        except ENDED as error:
            ended = timed_out(error, since, clock.now(), self.bounds)
            if ended is None:
                raise
            raise ended from error

    return call


def _unguarded(name: str) -> Any:
    method = _guarded(name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, **options: Any) -> Any:
        leftovers = own_leftovers(self)
        leftovers.ran_scripts = True
        leftovers.running += 1
        try:
            return await method(self, *arguments, **options)
        finally:
            leftovers.running -= 1

    return call


def _changes_codecs(name: str) -> Any:
    method = getattr(PoolConnectionProxy, name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, **options: Any) -> Any:
        own_leftovers(self).changed_codecs = True
        return await method(self, *arguments, **options)

    return call


def _adds_callback(kind: str) -> Any:
    method = getattr(PoolConnectionProxy, f"add_{kind}")

    @functools.wraps(method)
    def call(self: LentConnection, callback: Any) -> None:
        method(self, callback)
        own_leftovers(self).callbacks += ((kind, callback),)

    return call


def _removes_callback(kind: str) -> Any:
    method = getattr(PoolConnectionProxy, f"remove_{kind}")

    @functools.wraps(method)
    def call(self: LentConnection, callback: Any) -> None:
        method(self, callback)
        own_leftovers(self).callbacks = _without(self.leftovers.callbacks, (kind, callback))

    return call


_prepare = _guarded("prepare")

for _name in _UNGUARDED:
    setattr(LentConnection, _name, _unguarded(_name))
for _name in _GUARDED:
    setattr(LentConnection, _name, _guarded(_name))
for _name in _CODECS:
    setattr(LentConnection, _name, _changes_codecs(_name))
for _name in _CALLBACKS:
    setattr(LentConnection, f"add_{_name}", _adds_callback(_name))
    setattr(LentConnection, f"remove_{_name}", _removes_callback(_name))
