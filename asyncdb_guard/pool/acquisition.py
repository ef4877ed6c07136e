"""One `async with`: take a connection or wait for one, and release it."""

from __future__ import annotations

from types import TracebackType

from asyncdb_guard import clock
from asyncdb_guard.clock import elapsed
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.pool.loop_pool import LoopPool


class Acquisition:
    """What `GuardedPool.acquire()` returns; good for one `async with` at a time."""

    __slots__ = ("_core", "_in_use", "_lease", "_loop_pool", "_timeout")

    _lease: Lease
    _loop_pool: LoopPool

    def __init__(self, core: PoolCore, timeout: float | None) -> None:
        self._core = core
        self._timeout = timeout
        self._in_use = False

    async def __aenter__(self) -> LentConnection:
        if self._in_use:
            raise RuntimeError("This acquisition is in use. Call acquire() again for each `async with`.")
        self._in_use = True
        counters = self._core.counters
        counters.requests += 1
        lease = None
        try:
            self._loop_pool = loop_pool = self._core.here()
            now = clock.now()
            permit = loop_pool.gate.admit(now)
            lease = loop_pool.take(permit, now)
            if lease is None:
                timeout = self._core.settings.connect_timeout if self._timeout is None else self._timeout
                lease = await loop_pool.wait(permit, timeout, now)
                counters.wait_ms += elapsed(now, lease.since) * 1000
            self._lease = lease
        except BaseException as error:
            if lease is not None:
                self._loop_pool.release(lease, error)
            self._in_use = False
            counters.count_failed_request(error)
            raise
        counters.acquired += 1
        return lease.lent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease = self._lease
        del self._lease
        self._in_use = False
        self._loop_pool.release(lease, error)
