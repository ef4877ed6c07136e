"""What a borrower of a rolled-back pool holds: a connection that behaves as if it were not in a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol, TypeVar

import asyncpg

from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.testing.pools.errors import RolledBackError
from asyncdb_guard.testing.pools.outage import is_down
from asyncdb_guard.testing.pools.statements import Reading, read

T = TypeVar("T")

_REMEDY = "Use a pool that is not rolled back for this test, such as the fixture guarded_pool."
_NOT_HERE = (asyncpg.ActiveSQLTransactionError, asyncpg.UnsafeNewEnumValueUsageError)
"""A statement that cannot run in a transaction, and one that needs a COMMIT before it."""


class Savepoint(Protocol):
    """What a borrower's statements are run in."""

    isolation: str

    async def save(self) -> None:
        """Before a statement or a transaction."""

    async def foresee(self, statement: Reading) -> None:
        """Before a statement, in a transaction or alone: note what it leaves for the end."""

    async def keep(self) -> None:
        """It went well."""

    def spoil(self) -> None:
        """It failed."""

    async def reload_schema(self) -> None:
        """It has changed tables or types."""


class SharedConnection(LentConnection):
    """A connection for one borrow of a rolled-back pool."""

    core: PoolCore
    """What it was borrowed from."""
    shared: Savepoint
    depth = 0
    """How many transactions of the borrower's are open."""
    busy = False
    lost = False
    """Whether the database was down during this borrow."""

    async def alone(self, call: Callable[[], Awaitable[T]], sql: str = "") -> T:
        """Run a statement as the server would outside of a transaction: its failure undoes nothing but itself."""
        if self.released:
            return await call()
        self.check_path()
        statement = read(sql)
        if statement.refused == "LISTEN":
            refuse_to_listen()
        if statement.refused is not None:
            _refuse(statement.refused)
        if self.depth:
            return await self._noted(call, statement)
        if statement.needs_transaction is not None:
            raise asyncpg.NoActiveSQLTransactionError(
                f"{statement.needs_transaction} can only be used in transaction blocks"
            )
        if self.busy:
            raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
        self.busy = True
        try:
            await self.shared.save()
            try:
                result = await self._noted(call, statement)
            except BaseException:
                self.shared.spoil()
                raise
            await self.shared.keep()
        finally:
            self.busy = False
        return result

    async def _noted(self, call: Callable[[], Awaitable[T]], statement: Reading) -> T:
        await self.shared.foresee(statement)
        try:
            result = await call()
        except _NOT_HERE as error:
            error.add_note(f"A rolled-back pool runs every statement in one transaction. {_REMEDY}")
            raise
        if statement.changes_schema:
            await self.shared.reload_schema()
        return result

    def check_path(self) -> None:
        """Fail as a connection does that was lost: for the rest of the borrow, once the database was down."""
        self.lost = self.lost or is_down(self.core.settings)
        if self.lost:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    def is_in_transaction(self) -> bool:
        return self.depth > 0

    def transaction(self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False) -> Any:
        if isolation not in {None, self.shared.isolation}:
            raise RolledBackError(
                f"The transaction of this rolled-back pool is {self.shared.isolation}: one that is {isolation} cannot"
                f" run in it. Use rolled_back(pool, isolation={isolation!r})."
            )
        return _Nested(self, super().transaction(), readonly=readonly)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        call = super().execute
        return await self.alone(lambda: call(query, *args, timeout=timeout), query)

    async def prepare(self, query: str, **options: Any) -> Any:
        call = super().prepare
        return _Prepared(self, await self.alone(lambda: call(query, **options)), query)

    async def prepare_cached(self, query: str) -> Any:
        call = super().prepare_cached
        return _Prepared(self, await self.alone(lambda: call(query)), query)

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        _check_cursor(self)
        return super().cursor(query, *args, **options)

    async def add_listener(self, channel: str, callback: Any) -> None:
        refuse_to_listen()

    async def reset(self, **options: Any) -> None:
        _refuse("reset()")

    async def close(self, *, timeout: float | None = None) -> None:
        _refuse("close()")

    def terminate(self) -> None:
        _refuse("terminate()")


class _Nested:
    """A borrower's transaction: a savepoint of the shared one."""

    def __init__(self, connection: SharedConnection, inner: Any, *, readonly: bool) -> None:
        self._connection = connection
        self._inner = inner
        self._readonly = readonly
        self._managed = False
        self._open = False
        self._outermost = False

    async def start(self) -> None:
        await self._start(self._inner.start)

    async def commit(self) -> None:
        await self._end(self._inner.commit, kept=True, refused=self._managed)

    async def rollback(self) -> None:
        await self._end(self._inner.rollback, kept=False, refused=self._managed)

    async def __aenter__(self) -> None:
        await self._start(self._inner.__aenter__)
        self._managed = True

    async def __aexit__(self, *error: object) -> None:
        self._managed = False
        await self._end(lambda: self._inner.__aexit__(*error), kept=error[0] is None)

    async def _start(self, start: Callable[[], Awaitable[None]]) -> None:
        connection = self._connection
        if self._open or connection.released:
            return await start()  # asyncpg says what is wrong
        connection.check_path()
        outermost = connection.depth == 0
        if outermost:
            await connection.shared.save()
        try:
            await start()
            if self._readonly and outermost:  # asyncpg/transaction.py: of an inner one it is passed over
                await LentConnection.execute(connection, "SET TRANSACTION READ ONLY")
        except BaseException:
            if outermost:
                connection.shared.spoil()
            raise
        self._open, self._outermost = True, outermost
        connection.depth += 1
        return None

    async def _end(self, end: Callable[[], Awaitable[None]], *, kept: bool, refused: bool = False) -> None:
        connection = self._connection
        if refused or not self._open or connection.released:
            return await end()  # asyncpg says what is wrong
        self._open = False
        connection.depth -= 1
        try:
            if kept:
                connection.check_path()
            await end()
        except BaseException as error:
            if not self._outermost:
                raise
            connection.shared.spoil()
            if not isinstance(error, asyncpg.InFailedSQLTransactionError):
                raise
            return None  # a COMMIT after an error that the borrower passed over is a ROLLBACK, and says nothing
        if self._outermost:
            if kept:
                await connection.shared.keep()
            else:
                connection.shared.spoil()
        return None


class _Prepared:
    """A prepared statement: each run of it is a statement."""

    def __init__(self, connection: SharedConnection, inner: Any, sql: str) -> None:
        self._connection = connection
        self._inner = inner
        self._sql = sql

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name == "cursor":
            _check_cursor(self._connection)
        if name not in _RUNS:
            return attribute

        async def run(*arguments: Any, **options: Any) -> Any:
            return await self._connection.alone(lambda: attribute(*arguments, **options), self._sql)

        return run


_RUNS = frozenset({"explain", "fetch", "fetchval", "fetchrow", "fetchmany", "executemany"})
_TAKES_SQL = ("fetch", "fetchval", "fetchrow", "fetchmany", "executemany")
_TAKES_NONE = ("copy_from_query", "copy_from_table", "copy_to_table", "copy_records_to_table")


def _alone(name: str) -> Any:
    method = getattr(LentConnection, name)

    async def call(self: SharedConnection, *arguments: Any, **options: Any) -> Any:
        sql = str(arguments[0]) if name in _TAKES_SQL and arguments else ""
        return await self.alone(lambda: method(self, *arguments, **options), sql)

    return call


for _name in _TAKES_SQL + _TAKES_NONE:
    setattr(SharedConnection, _name, _alone(_name))


def _check_cursor(connection: SharedConnection) -> None:
    if not connection.depth:
        raise asyncpg.NoActiveSQLTransactionError("cursor cannot be created outside of a transaction")


def _refuse(command: str) -> NoReturn:
    raise RolledBackError(
        f"{command} cannot run on a rolled-back pool, whose one transaction is always undone. Use conn.transaction()"
        f" for a transaction. {_REMEDY}"
    )


def refuse_to_listen() -> NoReturn:
    """For LISTEN, by whatever way. Raises RolledBackError."""
    raise RolledBackError(
        f"LISTEN cannot run on a rolled-back pool: nothing is committed, so no notification would arrive. {_REMEDY}"
    )
