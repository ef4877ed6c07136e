"""SQLAlchemy's dialect for asyncpg, on borrowed connections.

SQLAlchemy's own keeps what it knows of a connection, prepared statements and type codecs, in an object that lives as
long as the session. Here that object lives as long as one borrow: statements come from asyncpg's cache, and the types
are converted by SQLAlchemy instead of by codecs, which another borrower of the session would find.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, NoReturn

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncAdapt_asyncpg_connection,
    AsyncAdapt_asyncpg_dbapi,
    PGDialect_asyncpg,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.util.concurrency import await_, in_greenlet

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.pool.acquisition import Acquisition

DRIVER = "asyncdb_guard"
"""The name of the driver in the engine's URL, which says nothing else."""


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that waits for `waits_for`, from where another caller has started it."""
    while True:
        try:
            answer = yield waits_for
        except BaseException as error:
            step: Callable[[], Any] = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, answer)
        try:
            waits_for = step()
        except StopIteration:
            return


def note_invalidation(connection: BorrowedConnection, _record: object, error: BaseException | None) -> None:
    """Called by SQLAlchemy before it discards a connection: because of `error`, or because the application asked."""
    connection.discard = error is None
    if error is not None and not isinstance(error, Exception):
        connection.error = error


class BorrowedConnection(AsyncAdapt_asyncpg_connection):
    """A connection for one borrow, as SQLAlchemy uses it. It returns to the guarded pool when SQLAlchemy closes it."""

    __slots__ = ("_acquisition", "_lent", "discard", "error")

    def __init__(self, dbapi: Any, acquisition: Acquisition) -> None:
        self._lent = acquisition.connection
        untyped: Any = super()
        untyped.__init__(dbapi, self._lent, prepared_statement_cache_size=0)
        self._acquisition: Acquisition | None = acquisition
        self.error: BaseException | None = None
        """The last error of the driver, or what interrupted it: the breaker judges by it."""
        self.discard = False
        """Whether the application has invalidated the connection."""

    @property
    def is_lost(self) -> bool:
        """Whether the session has ended."""
        return self._acquisition is None or self._acquisition.is_lost

    async def _check_type_cache_invalidation(self, invalidate_timestamp: float) -> None:
        if invalidate_timestamp > self.dbapi.schema_read_at:
            self.dbapi.schema_read_at = invalidate_timestamp
            await self._lent.reload_schema_state()  # of all connections of the pool

    async def _prepare(self, operation: str, invalidate_timestamp: float) -> tuple[Any, Any]:
        if invalidate_timestamp > self.dbapi.schema_read_at:
            await self._check_type_cache_invalidation(invalidate_timestamp)
        statement = await self._lent.prepare_cached(operation)
        return statement, statement.get_attributes()

    def _handle_exception(self, error: Exception) -> NoReturn:
        self.error = error
        if self.is_lost:
            self._transaction = None
        self._handle_exception_no_connection(self.dbapi, error)

    def close(self) -> None:
        """Return the connection. Never waits."""
        self._release()

    def terminate(self) -> None:
        """Return a connection that SQLAlchemy does not trust: the pool cleans it, or replaces it."""
        if not in_greenlet():
            self._acquisition = None  # the garbage collector asks, in whatever thread: the lease finds its own way
            return
        if self.discard and not self.is_lost:
            self._lent.terminate()
        self._release()

    def _release(self) -> None:
        acquisition, self._acquisition, self._transaction = self._acquisition, None, None
        if acquisition is not None:
            if self.error is None and not acquisition.is_lost:
                self._lent.confirm_synced()
            acquisition.release(self.error)


class GuardedDbapi(AsyncAdapt_asyncpg_dbapi):
    """SQLAlchemy's view of asyncpg as a DBAPI; lives as long as its engine."""

    def __init__(self, asyncpg: Any) -> None:
        untyped: Any = super()
        untyped.__init__(asyncpg)
        self.schema_read_at = time.time()
        """When the pool's connections last forgot what they knew of the schema."""

    def connect(
        self, *_arguments: Any, async_creator_fn: Callable[[], Acquisition], **_options: Any
    ) -> BorrowedConnection:
        """Borrow a connection. Raises like `GuardedPool.acquire`."""
        acquisition = async_creator_fn()
        entering = acquisition.__aenter__()
        try:
            # nearly always there is nothing to wait for, and then no switch of greenlets is needed
            waits_for = entering.send(None)
        except StopIteration:
            pass
        else:
            await_(_resume(entering, waits_for))
        return BorrowedConnection(self, acquisition)


class GuardedDialect(PGDialect_asyncpg):
    """PostgreSQL through asyncpg and a guarded pool."""

    supports_statement_cache = True
    # SQLAlchemy converts JSON itself: a codec would take two round trips for each borrow.
    supports_native_json_deserialization = False
    dialect_injects_custom_json_deserializer = False

    @classmethod
    def import_dbapi(cls) -> Any:
        import asyncpg

        return GuardedDbapi(asyncpg)

    def on_connect(self) -> Any:
        return PGDialect.on_connect(self)  # without asyncpg's codecs

    def initialize(self, connection: Connection) -> None:
        untyped: Any = super()
        untyped.initialize(connection)
        row = connection.exec_driver_sql("SELECT '1'::json, '1'::jsonb").one()
        if tuple(row) != ("1", "1"):
            raise ConfigurationError(
                "init= of GuardedPool sets a codec for json or jsonb, which SQLAlchemy converts itself: remove it, or"
                " use a pool of its own for the engine."
            )

    def is_disconnect(self, e: Exception, connection: Any, cursor: Any) -> bool:
        return connection is not None and bool(connection.is_lost)
