"""`GuardedPool`: the one object that users hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.initialization import Init
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.events import Events, Listener
from asyncdb_guard.pool.acquisition import Acquisition, take_acquisition
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.pool.observers import Observers
from asyncdb_guard.pool.stats import PoolStats
from asyncdb_guard.settings import DatabaseSettings

if TYPE_CHECKING:
    from typing import Self

    from asyncpg import Record

    from asyncdb_guard.pool.listening import Listening

    Isolation: TypeAlias = Literal["read_committed", "read_uncommitted", "repeatable_read", "serializable"]


class Transaction:
    """What `GuardedPool.transaction()` returns; good for one `async with`.

    No generator, as one that is left to the end of the event loop would be closed from two sides.
    """

    __slots__ = ("_acquisition", "_options", "_stack")

    def __init__(self, acquisition: Acquisition, options: dict[str, Any]) -> None:
        self._acquisition = acquisition
        self._options = options

    async def __aenter__(self) -> LentConnection:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._acquisition)
            await stack.enter_async_context(connection.transaction(**self._options))
            self._stack = stack.pop_all()
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)


class GuardedPool:
    """A bounded, guarded pool of sessions. Born closed: no I/O and no look at the environment before its first use.

    It serves one event loop at a time and follows its caller to another one, where it opens new sessions after the
    old ones are gone; a forked child never touches its parent's. `settings` default to the environment's,
    `credentials` to what the URL says; `on_event` is one listener or several.

    `init` is asyncpg's: an `async def init(conn)` that prepares each new connection, such as with `set_type_codec`,
    before anybody borrows it. It runs once for each session and within the bound on a connect; what it raises reaches
    whoever waits for the connection, and ends the session. What it sets is there for every borrower: the codecs, the
    listeners, and what it SETs on the server, which the session reset sets again. Temporary tables, advisory locks and
    names of PREPARE are not. Behind a transaction pooler SET and LISTEN raise ConfigurationError.

    Lives as long as the process, or until `close()`; leaving `async with` closes it.
    """

    def __init__(
        self,
        settings: DatabaseSettings | None = None,
        *,
        credentials: Credentials | None = None,
        on_event: Listener | Iterable[Listener] = (),
        init: Init | None = None,
    ) -> None:
        self._core = PoolCore(settings, credentials, on_event, init)

    @property
    def settings(self) -> DatabaseSettings:
        """The settings, read from the environment on first use. Raises ConfigurationError."""
        return self._core.settings

    @property
    def events(self) -> Events:
        """Where this pool's events go; listeners can be added."""
        return self._core.events

    @property
    def observers(self) -> Observers:
        """What records how long each borrow waited and lasted. `asyncdb_guard.otel` is one of them, if it is used."""
        return self._core.observers

    def acquire(self, *, timeout: float | None = None) -> Acquisition:
        """Borrow a connection for an `async with` block, which the breaker judges.

        `await pool.acquire()` borrows it, too, until `release`, or until nothing refers to it any more.

        `timeout` bounds the wait, the liveness check and the connect together, in seconds; by default it is
        CONNECT_TIMEOUT_MS, and a connect takes no longer than that in any case. Raises CircuitOpenError,
        ConnectFailedError, AcquireTimeoutError, PoolClosedError or, on first use, ConfigurationError. What the block
        raises passes through untouched.
        """
        return Acquisition(self._core, timeout)

    async def release(self, connection: LentConnection, *, timeout: float | None = None) -> None:
        """Return a connection that `await pool.acquire()` gave. A second time does nothing.

        Call it in a `finally`: the breaker judges the error that is being handled as if it had ended a block. A release
        never waits, so that there is nothing for `timeout` to bound; it is asyncpg's. Raises asyncpg.InterfaceError for
        a connection of another pool, or of an `async with` block, and PoolInUseError for one that was acquired on
        another event loop which is still running.
        """
        acquisition = take_acquisition(connection, self._core)
        if acquisition is not None:
            await acquisition.end(connection)

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Record]:
        """Borrow a connection, run one statement and return its rows; `timeout` in seconds bounds the statement.

        By default that is COMMAND_TIMEOUT_MS. Raises like `acquire`, what the statement raises, and
        StatementTimeoutError where it takes longer. For a bound of your own on the wait for a connection, use
        `acquire`.
        """
        async with self.acquire() as connection:
            rows: list[Record] = await connection.fetch(query, *args, timeout=timeout)
            return rows

    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Record | None:
        """Like `fetch`, for the first row or None."""
        async with self.acquire() as connection:
            row: Record | None = await connection.fetchrow(query, *args, timeout=timeout)
            return row

    async def fetchval(self, query: str, *args: object, column: int = 0, timeout: float | None = None) -> Any:
        """Like `fetch`, for one column of the first row, or None."""
        async with self.acquire() as connection:
            return await connection.fetchval(query, *args, column=column, timeout=timeout)

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """Like `fetch`, for the command tag; without arguments the text may hold several statements."""
        async with self.acquire() as connection:
            tag: str = await connection.execute(query, *args, timeout=timeout)
            return tag

    async def executemany(
        self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> None:
        """Run one statement for each sequence of arguments: all of them, or none."""
        async with self.acquire() as connection:
            await connection.executemany(command, args, timeout=timeout)

    async def fetchmany(
        self, query: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> list[Record]:
        """Like `executemany`, for the rows of all of them."""
        async with self.acquire() as connection:
            rows: list[Record] = await connection.fetchmany(query, args, timeout=timeout)
            return rows

    async def copy_from_table(
        self, table_name: str, *, output: Any, timeout: float | None = None, **options: Any
    ) -> str:
        """COPY a table to a file, a path or a coroutine function, and return the command tag; `options` are asyncpg's.

        Raises like `execute`.
        """
        async with self.acquire() as connection:
            tag: str = await connection.copy_from_table(table_name, output=output, timeout=timeout, **options)
            return tag

    async def copy_from_query(
        self, query: str, *args: object, output: Any, timeout: float | None = None, **options: Any
    ) -> str:
        """Like `copy_from_table`, for the rows of a query."""
        async with self.acquire() as connection:
            tag: str = await connection.copy_from_query(query, *args, output=output, timeout=timeout, **options)
            return tag

    async def copy_to_table(self, table_name: str, *, source: Any, timeout: float | None = None, **options: Any) -> str:
        """COPY from a file, a path or an asynchronous iterable to a table. Otherwise like `copy_from_table`."""
        async with self.acquire() as connection:
            tag: str = await connection.copy_to_table(table_name, source=source, timeout=timeout, **options)
            return tag

    async def copy_records_to_table(
        self, table_name: str, *, records: Any, timeout: float | None = None, **options: Any
    ) -> str:
        """COPY records, from an iterable or an asynchronous one, to a table. Otherwise like `copy_from_table`."""
        async with self.acquire() as connection:
            tag: str = await connection.copy_records_to_table(table_name, records=records, timeout=timeout, **options)
            return tag

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> Transaction:
        """Borrow a connection for one transaction: committed when the block ends, rolled back when it raises.

        `timeout` is that of `acquire`.
        """
        options = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Transaction(self.acquire(timeout=timeout), options)

    def listen(self, *channels: str) -> Listening:
        """LISTEN on `channels`, and give each notification: `async for note in pool.listen("jobs")`.

        An item is a `Notification`, or a `NotificationsMissed` where some may have been lost: after a lost connection,
        which is replaced as soon as the breaker lets it, and where 10,000 waited to be read. `async with
        pool.listen("jobs") as notes` listens from its beginning, so that nothing is missed that comes after a first
        look into the database, and returns the connection at its end; a bare `async for` listens from its first step.
        It ends when the pool is closed.

        It holds one session of the pool, which is exempt from the idle timeout; set POOL_MAX to 2 or more to share the
        pool. Needs a direct connection. The first step raises like `acquire`; ConfigurationError behind a transaction
        pooler.
        """
        from asyncdb_guard.pool.listening import Listening  # only where it is needed, for a quick cold start

        return Listening(self._core, channels)

    async def ping(self, *, timeout: float | None = None) -> None:
        """One round trip to the server, through the guard; `timeout` bounds all of it, in seconds.

        By default that is CONNECT_TIMEOUT_MS for the connection and COMMAND_TIMEOUT_MS for the answer. Raises like
        `acquire`, and StatementTimeoutError where the answer takes too long.
        """
        time = asyncio.get_running_loop().time
        end = None if timeout is None else time() + timeout
        async with self.acquire(timeout=timeout) as connection:
            # asyncpg/protocol/protocol.pyx: a timeout of zero or less is none
            await connection.execute("SELECT 1", timeout=None if end is None else max(end - time(), 0.001))

    def stats(self) -> PoolStats:
        """A snapshot; no I/O. Raises ConfigurationError."""
        core, loop_pool = self._core, self._core.loop_pool
        connections = loop_pool.connections if loop_pool is not None else None
        return PoolStats(
            pool_max=core.settings.pool_max,
            circuit=core.breaker.state,
            idle=len(connections.idle) if connections is not None else 0,
            lent=len(connections.lent) + len(connections.at_work) if connections is not None else 0,
            waiting=loop_pool.gate.waiting if loop_pool is not None else 0,
            **core.totals(),
        )

    def get_size(self) -> int:
        """How many server sessions the pool has now. Raises ConfigurationError, like each of these."""
        stats = self.stats()
        return stats["idle"] + stats["lent"]

    def get_idle_size(self) -> int:
        """How many of them are idle."""
        return self.stats()["idle"]

    def get_min_size(self) -> int:
        """0: sessions are opened on demand, and idle ones are closed."""
        return 0

    def get_max_size(self) -> int:
        """POOL_MAX."""
        return self.settings.pool_max

    def is_closing(self) -> bool:
        """Whether `close()` or `terminate()` was called."""
        return self._core.closed

    async def expire_connections(self) -> None:
        """Replace each open session at its next borrow. Borrowers keep theirs until they return it."""
        loop_pool = self._core.loop_pool
        for connection in loop_pool.connections.all if loop_pool is not None else ():
            connection.expire()

    def __repr__(self) -> str:
        core = self._core
        if core.closed:
            return "<GuardedPool closed>"
        if core.loop_pool is None:
            return "<GuardedPool without a session>"
        now = self.stats()
        return (
            f"<GuardedPool circuit={now['circuit']} idle={now['idle']} lent={now['lent']} waiting={now['waiting']}"
            f" pool_max={now['pool_max']}>"
        )

    async def close(self, timeout: float = 1.0) -> None:
        """End the pool for good within `timeout` seconds: borrowers may finish, then they are cut off."""
        await self._core.close(timeout)

    def terminate(self) -> None:
        """End the pool for good, at once and without a goodbye; borrowers are cut off."""
        self._core.terminate()

    async def disconnect(self, timeout: float = 1.0) -> None:
        """End all sessions within `timeout` seconds, running statements included; the next use opens new ones."""
        await self._core.disconnect(timeout)

    async def __aenter__(self) -> Self:
        self._core.here()  # a bad setting shows here, not in the first request
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
