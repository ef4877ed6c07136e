"""One borrow: take a connection or wait for one, and release it. In an `async with`, or by `await` and `release`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from types import TracebackType
from typing import Any

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.call_site import caller
from asyncdb_guard.clock import elapsed
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.errors import PoolInUseError
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.pool.loop_pool import LoopPool

_FOREIGN = "release() got a connection that was not acquired from this pool. Release it where it was acquired."
_OF_A_BLOCK = (
    "release() got a connection of an `async with` block, which returns it at its end. Release only what `await"
    " pool.acquire()` returned."
)


_OF_ANOTHER_LOOP = (
    "The connection was acquired on another event loop, which is still running: in another thread. Release it there."
)


class Acquisition:
    """What `GuardedPool.acquire()` returns; good for one `async with`, or one `await`, at a time."""

    __slots__ = ("_core", "_handled", "_in_use", "_lease", "_loop_pool", "_timeout")

    _lease: Lease
    _loop_pool: LoopPool

    def __init__(self, core: PoolCore, timeout: float | None) -> None:
        self._core = core
        self._timeout = timeout
        self._in_use = False
        self._handled = 0

    @property
    def _seconds(self) -> float:
        return self._core.settings.connect_timeout if self._timeout is None else self._timeout

    async def __aenter__(self) -> LentConnection:
        if self._in_use:
            raise RuntimeError("This acquisition is in use. Call acquire() again for each borrow.")
        self._in_use = True
        counters, observers = self._core.counters, self._core.observers
        began = clock.now() if observers.present else None
        counters.requests += 1
        lease = None
        try:
            self._loop_pool = loop_pool = self._core.here()
            now = since = clock.now()
            gate = loop_pool.gate
            if gate.bulletin is not None and (bulletin := gate.bulletin_to_ask) is not None:
                news = await bulletin.look(self._seconds)
                now = clock.now()
                gate.hear(news, now)
            permit = gate.admit(now)
            lease = loop_pool.take(permit, now)
            if lease is None:
                lease = await loop_pool.wait(permit, max(self._seconds - elapsed(since, now), 0.0), now)
                counters.wait_ms += elapsed(now, lease.since) * 1000
            self._lease = lease
            lease.connection.holder = asyncio.current_task()
            if loop_pool.hold_warning:
                loop_pool.watch(lease, caller())
        except BaseException as error:
            if lease is not None:
                self._loop_pool.release(lease, error)
            self._in_use = False
            counters.count_failed_request(error)
            if began is not None:
                observers.failed(elapsed(began, clock.now()), error)
            raise
        counters.acquired += 1
        if began is not None:
            observers.acquired(elapsed(began, lease.since))
        return lease.lent

    @property
    def connection(self) -> LentConnection:
        """What is lent, between the two ends of the `async with`."""
        return self._lease.lent

    @property
    def is_lost(self) -> bool:
        """Whether the client knows that the session has ended."""
        return self._lease.connection.is_closed()

    def confirm(self) -> None:
        """The database works: report that now, as the block will last. From a trial, this closes the circuit."""
        self._lease.permit = self._loop_pool.gate.confirm(self._lease.permit)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release(error)

    def release(self, error: BaseException | None) -> None:
        """Return the connection from a block that ended with `error`. Never waits."""
        lease = self._lease
        del self._lease
        self._in_use = False
        since = lease.since
        self._loop_pool.release(lease, error)
        if self._core.observers.present:
            self._core.observers.released(elapsed(since, clock.now()))

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was made on another event loop, which is still running."""
        return self._loop is not asyncio.get_running_loop() and self._loop.is_running()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._loop_pool.loop

    @property
    def core(self) -> PoolCore:
        """What it borrows from."""
        return self._core

    def __await__(self) -> Generator[Any, None, LentConnection]:
        return self._borrow().__await__()

    async def _borrow(self) -> LentConnection:
        # only its identity, as the error itself would keep its frames alive, and with them the connection
        self._handled = id(sys.exception())
        lent = await self.__aenter__()
        lent.acquisition = self
        self._let_go(lent)
        return lent

    def _let_go(self, lent: LentConnection) -> None:
        """From here on the borrower alone holds `lent`: if it forgets it, the lease is collected at once."""
        lease = self._lease
        del lease.lent
        lease.connection.holder = None  # another task may release it
        lease.connection.let_go(lent)

    def _hold(self, lent: LentConnection) -> None:
        self._lease.lent = lent

    async def end(self, lent: LentConnection) -> None:
        """Release what `await` returned. The error that is being handled counts as if it had ended a block.

        Not so one that was being handled at the acquisition already.
        """
        error = sys.exception()
        if error is not None and id(error) == self._handled:
            error = None
        self._hold(lent)
        await self.__aexit__(type(error) if error is not None else None, error, None)


def take_acquisition(connection: object, core: PoolCore) -> Acquisition | None:
    """Whose `end` releases `connection`, for one caller; None if that has been done. Raises asyncpg.InterfaceError."""
    if not issubclass(type(connection), LentConnection):  # asyncpg makes isinstance() true for every connection
        raise asyncpg.InterfaceError(_FOREIGN)
    lent: Any = connection
    acquisition: Acquisition | None = lent.acquisition
    if acquisition is None:
        if lent.released:
            return None
        raise asyncpg.InterfaceError(_OF_A_BLOCK)
    if acquisition.core is not core:
        raise asyncpg.InterfaceError(_FOREIGN)
    if acquisition.is_elsewhere:
        raise PoolInUseError(_OF_ANOTHER_LOOP)
    lent.acquisition = None
    return acquisition
