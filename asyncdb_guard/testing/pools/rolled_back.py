"""`rolled_back(pool)`: a pool with the same face, whose borrowers leave no trace in the database."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NoReturn

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.call_site import caller
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.errors import AcquireTimeoutError, DatabaseUnavailableError, PoolClosedError
from asyncdb_guard.events import AcquireTimeout
from asyncdb_guard.pool import GuardedPool, PoolStats
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.testing.pools import inside
from asyncdb_guard.testing.pools.errors import RolledBackError
from asyncdb_guard.testing.pools.outage import is_down
from asyncdb_guard.testing.pools.shared_connection import SharedConnection, refuse_to_listen
from asyncdb_guard.testing.pools.shared_transaction import SharedTransaction, restore_sequences

if TYPE_CHECKING:
    from asyncdb_guard.pool.guarded_pool import Isolation


def rolled_back(pool: GuardedPool, *, isolation: Isolation | None = None) -> RolledBackPool:
    """A pool with the same face as `pool`, for `async with`, that undoes in the end whatever its borrowers did.

    They share one connection of `pool` in one transaction, one borrower after the other. To each it looks as if it had
    a session of its own: a statement that fails undoes only itself, `transaction()` is a savepoint whose end checks
    deferred constraints, cursors need a transaction. Sequences are set back, too.

    What cannot work says so: BEGIN and COMMIT as statements, LISTEN, and a transaction of another isolation level raise
    RolledBackError; the server refuses VACUUM and the like by name. `now()` stands still, as in any transaction, and
    two borrowers at once wait for each other.

    `isolation`: of the one transaction; by default the server's. It has a circuit breaker of its own, for
    `open_circuit()`; under `database_down()` it fails as any pool, and keeps what was written. `pool` stays open.
    """
    return RolledBackPool(pool, isolation)


class RolledBackPool(GuardedPool):
    """Made by `rolled_back()`. Born closed; lives on one event loop, from its first borrow until `close()`."""

    def __init__(self, pool: GuardedPool, isolation: Isolation | None = None) -> None:
        # A copy: what database_down() does to it concerns nobody else.
        super().__init__(pool.settings.model_copy(), credentials=inside.credentials_of(pool), on_event=pool.events.emit)
        self._pool = pool
        self._isolation = isolation
        self._beginning: asyncio.Task[SharedTransaction] | None = None
        self.transaction_in_use: SharedTransaction | None = None
        """The one transaction, once the first borrow has begun it."""

    @property
    def left_open(self) -> list[str]:
        """Where the connection was borrowed, as "file:line in function", if it is not back yet."""
        shared = self.transaction_in_use
        return [shared.place] if shared is not None and shared.place is not None else []

    def acquire(self, *, timeout: float | None = None) -> Acquisition:
        """Borrow the one connection, as `GuardedPool.acquire` does. Raises RolledBackError, too."""
        return _SharedAcquisition(self, timeout, caller())

    def listen(self, *channels: str) -> NoReturn:
        """Raises RolledBackError: nothing is committed, so nothing would ever be heard."""
        refuse_to_listen()

    async def begun(self, timeout: float | None) -> SharedTransaction:
        """The one transaction; the first caller begins it. Raises as the `acquire()` of the pool behind it does."""
        if self._core.closed:
            raise PoolClosedError
        shared = self.transaction_in_use
        if shared is not None and shared.loop is not asyncio.get_running_loop():
            raise RolledBackError(
                "A rolled-back pool serves one event loop, and its transaction is on another one. Use a rolled-back"
                " pool for each test, or one event loop for all of them."
            )
        if shared is None:
            if self._beginning is None:
                begin = SharedTransaction.begin(self._pool, self._isolation, timeout)
                self._beginning = asyncio.create_task(begin)  # a cancelled borrower must not leave it half done
            shared = await self._joined(self._beginning)
        return shared

    async def _joined(self, beginning: asyncio.Task[SharedTransaction]) -> SharedTransaction:
        try:
            return await asyncio.shield(beginning)
        finally:  # where the borrower was cancelled, it goes on for the next one
            if beginning.done():
                self._beginning = None
                if not beginning.cancelled() and beginning.exception() is None:
                    self.transaction_in_use = beginning.result()

    def stats(self) -> PoolStats:
        """A snapshot; no I/O. Raises ConfigurationError."""
        stats, shared = super().stats(), self.transaction_in_use
        if shared is not None:
            stats["lent"], stats["waiting"] = int(shared.place is not None), shared.waiting
            stats["idle"] = 1 - stats["lent"]
        return stats

    async def disconnect(self, timeout: float = 1.0) -> None:
        """Does nothing: the one session holds what the test has written."""

    async def close(self, timeout: float = 1.0) -> None:
        """Undo everything, and return the connection to the pool that it came from."""
        self._core.closed = True
        if self._beginning is not None:
            with contextlib.suppress(DatabaseUnavailableError, asyncpg.PostgresError):
                await self._joined(self._beginning)
        shared, self.transaction_in_use = self.transaction_in_use, None
        if shared is not None:
            if shared.loop is asyncio.get_running_loop():
                await shared.undo()
            if shared.sequences:  # the session ended without that
                with contextlib.suppress(DatabaseUnavailableError, OSError, asyncpg.PostgresError):
                    await restore_sequences(self._pool, shared.sequences)
        await super().close(timeout)

    def terminate(self) -> None:
        """End the session at once, and with it the transaction."""
        shared, self.transaction_in_use = self.transaction_in_use, None
        if shared is not None:
            shared.drop()
        super().terminate()


class _SharedAcquisition(Acquisition):
    __slots__ = ("_lent", "_permit", "_place", "_pool", "_shared", "_since")

    _lent: SharedConnection | None
    _permit: int
    _since: Instant
    _shared: SharedTransaction

    def __init__(self, pool: RolledBackPool, timeout: float | None, place: str) -> None:
        super().__init__(inside.core_of(pool), timeout)
        self._pool = pool
        self._place = place
        self._lent = None

    async def __aenter__(self) -> LentConnection:
        core = self._core
        if is_down(core.settings):
            return await super().__aenter__()  # a real connect, to a port where nobody listens
        if self._in_use:
            raise RuntimeError("This acquisition is in use. Call acquire() again for each `async with`.")
        self._in_use = True
        counters, observers, began = core.counters, core.observers, clock.now()
        counters.requests += 1
        permit: int | None = None
        try:
            permit = core.breaker.admit(began)
            shared = await self._pool.begun(self._timeout)
            await shared.borrow(self._seconds, self._place)
        except BaseException as error:
            self._in_use = False
            if permit is not None:
                core.breaker.released(permit)
            counters.count_failed_request(error)
            if isinstance(error, AcquireTimeoutError) and permit is not None:
                core.events.emit(AcquireTimeout(elapsed(began, clock.now())))
            observers.failed(elapsed(began, clock.now()), error)
            raise
        counters.acquired += 1
        self._shared, self._permit, self._since = shared, permit, clock.now()
        observers.acquired(elapsed(began, self._since))
        self._lent = shared.lend(core)
        return self._lent

    @property
    def connection(self) -> SharedConnection:
        assert self._lent is not None
        return self._lent

    @property
    def is_lost(self) -> bool:
        return self.connection.lost or self._shared.is_lost

    def release(self, error: BaseException | None) -> None:
        lent, core = self._lent, self._core
        assert lent is not None
        self._lent = None
        self._in_use = False
        if error is None:
            core.breaker.succeeded(self._permit)
        else:
            core.breaker.released(self._permit)
        core.observers.released(elapsed(self._since, clock.now()))
        self._shared.give_back(lent, reset=core.settings.reset_sessions, in_transaction=lent.depth > 0)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._shared.loop

    def _let_go(self, lent: LentConnection) -> None:
        """The shared connection is nobody's to lose: the pool undoes it in the end. Another task may return it."""
        self._shared.holder = None

    def _hold(self, lent: LentConnection) -> None:
        """It was never let go."""
