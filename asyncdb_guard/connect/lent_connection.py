"""What a borrower holds: a proxy for asyncpg's connection that stops working when the block ends."""

from __future__ import annotations

import functools
from collections.abc import Coroutine
from typing import Any

from asyncpg.pool import PoolConnectionProxy
from asyncpg.prepared_stmt import PreparedStatement

from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.startup import STATEMENT_TIMEOUT_GRACE
from asyncdb_guard.events import logger

_STATEMENTS = ("execute", "copy_from_query", "copy_from_table", "copy_to_table", "copy_records_to_table")
"""Methods that asyncpg runs outside its exclusive section, so that it cannot tell whether one is still running."""

_BOUNDED = ("fetch", "fetchrow", "fetchval", "fetchmany", "executemany", *_STATEMENTS)
"""Methods that take a `timeout`, which may be longer than the server's bound."""

_CALLBACKS = ("log_listener", "termination_listener", "query_logger")
"""Kinds of callbacks that asyncpg keeps on a connection; each has a method to add one and a method to remove it."""

_CODECS = ("set_type_codec", "set_builtin_type_codec", "reset_type_codec")
"""Methods that change how a connection decodes a type. No reset undoes that."""


class LentConnection(PoolConnectionProxy):
    """A connection for one borrow: asyncpg's, with all its methods. It records what the borrower leaves behind."""

    closed_by_borrower = False
    """Whether the borrower closed it: then the session does not count as lost."""
    running = 0
    """How many calls of the methods in `_STATEMENTS` are running."""
    ran_scripts = False
    """Whether SQL was run that may contain several statements, such as a PREPARE."""
    changed_codecs = False
    server_bound: float | None = None
    """Seconds after which the server ends a statement; None if we set no bound."""
    reset_bound = "RESET statement_timeout"
    """How to return to that bound."""
    raised_server_bound = False
    listens = False
    """Whether it was borrowed by `GuardedPool.listen()`."""
    listeners: tuple[tuple[str, Any], ...] = ()
    """The channels that the borrower listens to, with their callbacks."""
    callbacks: tuple[tuple[str, Any], ...] = ()
    """The other callbacks that the borrower added, each with its kind."""
    acquisition: Any = None
    """What `release()` ends; None in an `async with`, which ends itself."""
    released = False
    """Whether the borrow is over: asyncpg refuses whatever comes now."""

    @property
    def in_statement(self) -> bool:
        """Whether a statement was interrupted that the server may still be running."""
        bare: Any = self
        return bool(bare._protocol._is_cancelling())

    async def close(self, *, timeout: float | None = None) -> None:
        self.closed_by_borrower = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self.closed_by_borrower = True
        super().terminate()

    async def add_listener(self, channel: str, callback: Any) -> None:
        if not (self.listens or self.listeners):
            logger.warning(
                "A listener was added to a connection that ends when it is idle for LAMBDA_DATABASE_IDLE_TIMEOUT_MS."
                " Use pool.listen(), which is exempt from that and listens again after a loss."
            )
        await super().add_listener(channel, callback)
        self.listeners += ((channel, callback),)

    async def remove_listener(self, channel: str, callback: Any) -> None:
        await super().remove_listener(channel, callback)
        self.listeners = _without(self.listeners, (channel, callback))

    def prepare_cached(self, query: str) -> Coroutine[Any, Any, PreparedStatement[Any]]:
        """Like `prepare`, but from asyncpg's statement cache: no round trip for a statement that the session knows."""
        bare: Any = self
        connection = bare if bare._con is None else bare._con  # the former raises, as the session has ended
        statement: Coroutine[Any, Any, PreparedStatement[Any]] = connection._prepare(query, use_cache=True)
        return statement

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
        self.raised_server_bound = True
        await execute(self, f"SET statement_timeout = {milliseconds}")
        answer = await method(self, *arguments, timeout=timeout, **options)
        await execute(self, self.reset_bound)
        self.raised_server_bound = False
        return answer


def _without(items: tuple[Any, ...], item: object) -> tuple[Any, ...]:
    return tuple(one for one in items if one != item)


def _bounded(name: str) -> Any:
    method = getattr(LentConnection, name)

    @functools.wraps(method)
    def call(self: LentConnection, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        if timeout is None or self.server_bound is None or timeout <= self.server_bound:
            return method(self, *arguments, timeout=timeout, **options)
        return self.with_longer_bound(method, timeout, arguments, options)

    return call


def _counts_as_running(name: str) -> Any:
    method = getattr(PoolConnectionProxy, name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, **options: Any) -> Any:
        self.ran_scripts = True
        self.running += 1
        try:
            return await method(self, *arguments, **options)
        finally:
            self.running -= 1

    return call


def _changes_codecs(name: str) -> Any:
    method = getattr(PoolConnectionProxy, name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, **options: Any) -> Any:
        self.changed_codecs = True
        return await method(self, *arguments, **options)

    return call


def _adds_callback(kind: str) -> Any:
    method = getattr(PoolConnectionProxy, f"add_{kind}")

    @functools.wraps(method)
    def call(self: LentConnection, callback: Any) -> None:
        method(self, callback)
        self.callbacks += ((kind, callback),)

    return call


def _removes_callback(kind: str) -> Any:
    method = getattr(PoolConnectionProxy, f"remove_{kind}")

    @functools.wraps(method)
    def call(self: LentConnection, callback: Any) -> None:
        method(self, callback)
        self.callbacks = _without(self.callbacks, (kind, callback))

    return call


for _name in _STATEMENTS:
    setattr(LentConnection, _name, _counts_as_running(_name))
for _name in _BOUNDED:
    setattr(LentConnection, _name, _bounded(_name))
for _name in _CODECS:
    setattr(LentConnection, _name, _changes_codecs(_name))
for _name in _CALLBACKS:
    setattr(LentConnection, f"add_{_name}", _adds_callback(_name))
    setattr(LentConnection, f"remove_{_name}", _removes_callback(_name))
