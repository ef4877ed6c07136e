"""The one transaction behind a rolled-back pool: begun once, shared by all borrowers, undone in the end.

What a borrower does outside of a transaction of its own runs after a savepoint: so a statement that fails undoes only
itself, as it would on its own, and the next one works. There is always exactly one savepoint of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import asyncpg

from asyncdb_guard.connect.reset import literal
from asyncdb_guard.errors import AcquireTimeoutError
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.testing.pools import inside
from asyncdb_guard.testing.pools.errors import RolledBackError
from asyncdb_guard.testing.pools.shared_connection import SharedConnection
from asyncdb_guard.testing.pools.statements import Reading

T = TypeVar("T")

_SAVE = "SAVEPOINT asyncdb_guard"
_NEXT = f"RELEASE {_SAVE}; {_SAVE}"
_UNDO = f"ROLLBACK TO {_SAVE}"
_CHECK = (
    # What a COMMIT would check, without a trace of the check: a constraint that is deferred stays so.
    "SAVEPOINT asyncdb_guard_check; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT asyncdb_guard_check;"
    " RELEASE SAVEPOINT asyncdb_guard_check"
)

_RESET_TIMEOUT = 1.0
"""Seconds for the reset at the end; what takes longer goes on without anybody who waits."""

_PATIENT = "SET LOCAL idle_in_transaction_session_timeout = 0"
"""A test may stand in a debugger for as long as it likes."""

_BEGUN = """
    SELECT replace(current_setting('transaction_isolation'), ' ', '_'),
        EXISTS (SELECT FROM pg_constraint WHERE condeferrable) OR EXISTS (SELECT FROM pg_trigger WHERE tgdeferrable),
    (
        SELECT string_agg(format('SELECT %1$L, last_value, is_called FROM %1$s', oid::regclass), ' UNION ALL ')
        FROM pg_sequence JOIN pg_class ON oid = seqrelid
        WHERE relpersistence <> 't' AND has_schema_privilege(relnamespace, 'USAGE')
          AND has_sequence_privilege(seqrelid, 'SELECT') AND has_sequence_privilege(seqrelid, 'UPDATE')
    )
"""
"""The isolation level, whether a COMMIT may find fault with anything, and the statement that reads all sequences, which
no ROLLBACK sets back."""


class SharedTransaction:
    """Lives from the first borrow until `undo()`, on one event loop."""

    def __init__(self, acquisition: Acquisition, isolation: str | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.place: str | None = None
        """Where its present borrower borrowed it."""
        self.holder: object = None
        """The task that borrowed it for an `async with`; None if anybody may return it."""
        self.isolation = isolation or ""
        self.waiting = 0
        self._turn = asyncio.Lock()
        self._acquisition = acquisition
        self._connection = inside.pooled_connection_of(acquisition)
        self._bare: Any = inside.bare(self._connection)
        self._sending: asyncio.Task[Any] | None = None
        self._fresh = True
        """Whether nothing has come after the savepoint."""
        self._spoiled = False
        """Whether what came after the savepoint is to be undone, which the next statement does."""
        self._checks = False
        """Whether a COMMIT may find fault: there are constraints or triggers that can be deferred."""
        self._needs_reset = False
        self._prepares = False
        """Whether a borrower may have left a name of PREPARE, which no ROLLBACK removes."""
        self._schema_changed = False
        self._local: dict[str, str | None] = {}
        """What the borrower has set until the end of its transaction, each with the value before that."""
        self._doomed: list[str] = []
        """The temporary tables that the end of its transaction drops."""
        self._lent: SharedConnection | None = None
        self._changed_codecs = False
        self.sequences: list[tuple[str, int, bool]] = []
        """Each sequence as it was: its quoted name, the last value, whether that value was handed out."""

    @classmethod
    async def begin(cls, pool: GuardedPool, isolation: Any, timeout: float | None) -> SharedTransaction:
        """Borrow a connection of the pool and begin. Raises as `acquire()` does."""
        acquisition = pool.acquire(timeout=timeout)
        lent = await acquisition.__aenter__()
        shared = cls(acquisition, isolation)
        try:
            outermost = lent.transaction(isolation=isolation)
            level = "" if isolation is None else f" ISOLATION LEVEL {isolation.replace('_', ' ')}"
            await lent.execute(f"BEGIN{level}; {_PATIENT}; {_SAVE}")
            inside.set_transaction(shared._connection, outermost)
            row: Any = await lent.fetchrow(_BEGUN)
            shared.isolation, shared._checks, read_sequences = row
            if read_sequences is not None:
                shared.sequences = [tuple(one) for one in await lent.fetch(read_sequences)]
        except BaseException as error:
            inside.set_transaction(shared._connection, None)
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await lent.execute("ROLLBACK")
            await acquisition.__aexit__(type(error), error, error.__traceback__)
            raise
        shared._connection.take_back(lent)
        shared._connection.closing = True  # a pool or an event loop that ends does not wait for its return
        return shared

    # -- borrowers, one after the other ------------------------------------------------------------------------------

    async def borrow(self, timeout: float, place: str) -> None:
        """Wait for the connection, for at most `timeout` seconds. Raises AcquireTimeoutError and RolledBackError."""
        if self.holder is asyncio.current_task():
            raise AcquireTimeoutError(
                "A rolled-back pool has one connection, and this task has it already: it was borrowed at"
                f" {self.place}. Return it first, or use a pool that is not rolled back."
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                await self._turn.acquire()
        except TimeoutError:
            raise AcquireTimeoutError(
                f"No connection became free within {timeout:.2f} s. A rolled-back pool has one connection, which was"
                f" borrowed at {self.place}: return it first, or use a pool that is not rolled back."
            ) from None
        finally:
            self.waiting -= 1
        try:
            if self._connection.is_closed():
                raise RolledBackError(
                    "The session of the rolled-back pool was lost, and with it all that the test had written. Test the"
                    " loss of a session with a pool that is not rolled back."
                )
            if self._needs_reset:
                if self._spoiled:
                    await self._send(_UNDO)
                await self._send(f"{inside.reset_query(self._connection, names=self._prepares)}; {_PATIENT}")
                self._fresh = self._needs_reset = self._prepares = False
        except BaseException:
            self._turn.release()
            raise
        self.place = place
        self.holder = asyncio.current_task()

    def lend(self, core: PoolCore) -> SharedConnection:
        """The connection for whoever has just got it from the pool of `core`."""
        self._lent = lent = inside.lend_as(SharedConnection, self._connection)
        lent.shared = self
        lent.core = core
        return lent

    @property
    def is_lost(self) -> bool:
        """Whether the client knows that the session has ended."""
        return self._connection.is_closed()

    def give_back(self, lent: SharedConnection, *, reset: bool, in_transaction: bool) -> None:
        """The borrower is done. What it left open is undone, as the pool's own reset would."""
        if self._lent is not lent:
            return  # it was cut off by `undo()`
        self.place = self.holder = None
        self._needs_reset = reset
        if in_transaction:
            self.spoil()
        try:
            self._take_back()  # warns of listeners left behind, and a warning may be an error
        finally:
            self._turn.release()

    def _take_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            self._changed_codecs = self._changed_codecs or lent.leftovers.changed_codecs
            self._connection.take_back(lent)

    # -- statements --------------------------------------------------------------------------------------------------

    async def save(self) -> None:
        """Before a statement or a transaction of a borrower: undo what failed before, and have a savepoint."""
        await self._settled()
        if self._spoiled:
            await self._send(_UNDO)
        elif not self._fresh:
            await self._send(_NEXT)
        self._fresh = False

    async def foresee(self, statement: Reading) -> None:
        """Before a statement of a borrower: note what `keep` and `undo` have to do about it."""
        for name in statement.local_settings:
            if name not in self._local:
                with contextlib.suppress(asyncpg.PostgresError):  # the transaction has failed: so will the statement
                    self._local[name] = await self._sent(partial(self._read_setting, name))
        self._doomed += statement.dropped_at_commit
        self._prepares = self._prepares or statement.prepares
        if statement.changes_schema:
            # what asyncpg remembers of tables and types is out of date, now and again after the undo
            self._schema_changed = self._checks = True

    async def keep(self) -> None:
        """It went well: check what a COMMIT checks, and end what it ends. Raises what the server finds."""
        local, doomed = self._local, self._doomed
        self._local, self._doomed = {}, []
        endings = [_CHECK] if self._checks else []
        endings += [
            f"SELECT set_config({literal(name)}, {literal(value or '')}, false)"
            for name, value in local.items()
            if value is not None or "." in name
        ]
        endings += [f"DROP TABLE IF EXISTS pg_temp.{name} CASCADE" for name in doomed]
        if endings:
            await self._send("; ".join(endings))

    def spoil(self) -> None:
        """It failed: the next statement undoes it first."""
        self._spoiled = True
        self._local, self._doomed = {}, []

    async def reload_schema(self) -> None:
        """Let asyncpg forget tables and types, as it does by itself outside of a transaction."""
        await self._bare.reload_schema_state()

    async def _send(self, sql: str) -> None:
        """Send a statement of our own. Its failure spoils what the borrower did."""
        await self._sent(partial(self._execute, sql))

    async def _sent(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Send something in a task of its own: a cancelled borrower must not leave it half done."""
        await self._settled()
        self._sending = sending = asyncio.create_task(work())
        return await asyncio.shield(sending)

    async def _settled(self) -> None:
        while self._sending is not None:
            await asyncio.wait({self._sending})

    async def _read_setting(self, name: str) -> str | None:
        try:
            value: str | None = await self._bare.fetchval("SELECT current_setting($1, true)", name)
            return value
        finally:
            self._sending = None

    async def _execute(self, sql: str) -> None:
        try:
            await self._bare.execute(sql)
        except BaseException:
            self.spoil()
            raise
        else:
            if sql in {_UNDO, _NEXT}:
                self._fresh, self._spoiled = True, False
        finally:
            self._sending = None

    # -- the end -----------------------------------------------------------------------------------------------------

    async def undo(self) -> None:
        """Roll everything back, and return the connection to the pool that it came from. On its own event loop."""
        await self._settled()
        self._take_back()
        inside.set_transaction(self._connection, None)
        try:
            if not self._connection.is_closed():
                await self._bare.execute("; ".join(["ROLLBACK", *map(_set_back, self.sequences)]))
                self.sequences = []
                if self._schema_changed:
                    await self.reload_schema()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._bare.terminate()  # a statement of the last borrower still runs: the server undoes it with the session
        finally:
            inside.return_now(self._acquisition, changed_codecs=self._changed_codecs)
        await inside.wait_until_reset(self._acquisition, self._connection, _RESET_TIMEOUT)

    def drop(self) -> None:
        """End the session, and with it the transaction, at once."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self._bare.terminate()
        self._take_back()
        inside.return_now(self._acquisition, changed_codecs=self._changed_codecs)


async def restore_sequences(pool: GuardedPool, sequences: list[tuple[str, int, bool]]) -> None:
    """Set back each sequence that has moved."""
    await pool.execute("; ".join(map(_set_back, sequences)))


def _set_back(sequence: tuple[str, int, bool]) -> str:
    name, value, called = sequence
    literal = name.replace("'", "''")
    return (
        f"SELECT setval('{literal}', {value}, {called}) FROM {name}"  # noqa: S608 -- a name that the server has quoted
        f" WHERE (last_value, is_called) IS DISTINCT FROM ({value}, {called})"
    )
