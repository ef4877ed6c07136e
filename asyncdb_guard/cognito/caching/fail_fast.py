"""Keeps a slow or failing cache from delaying sign-ins, and remembers what it could not forget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.protocol import ClaimsBackend, Found
from asyncdb_guard.cognito.outcome import capture
from asyncdb_guard.errors import CacheUnavailableError
from asyncdb_guard.events import logger

T = TypeVar("T")

_UNKNOWN = Found(None, None)
_PARTS = 5
"""Parts of the time that a call may take."""
_OWED_MAX = 10_000
"""Users to remember while the cache is unavailable."""


class _Backoff:
    """How long something is not tried after failures: longer with each consecutive one. Time is an argument."""

    FIRST, MAX = 1.0, 30.0
    """Seconds without a call after a failure."""

    def __init__(self) -> None:
        self.failures = 0
        """All that have been counted."""
        self._seconds = 0.0
        self._failed_at: Instant = (0.0, 0.0)

    def is_active(self, now: Instant) -> bool:
        return bool(self._seconds) and elapsed(self._failed_at, now) < self._seconds

    def extend(self, now: Instant) -> float:
        """Count a failure. Return the seconds to wait."""
        self.failures += 1
        self._seconds = min(self._seconds * 2 or self.FIRST, self.MAX)
        self._failed_at = now
        return self._seconds

    def reset(self) -> None:
        self._seconds = 0.0


class FailFastCache:
    """A `ClaimsBackend` in front of one that may be slow or unavailable; lives as long as that one.

    A call that fails, or takes longer than `CALL_TIMEOUT`, counts as a miss. After it the cache is not called for a
    backoff period, which doubles with each consecutive failure, so that few sign-ins wait for a cache that is down. A
    cache that answers but refuses a write is still read.

    `forget` is always attempted. As long as it fails, this process reads and writes no entry of that user, and forgets
    the user as soon as the cache works again.

    `concurrency`: the calls that the cache runs at the same time; default any number. Further calls wait for their turn
    here, which says nothing about the cache.
    """

    CALL_TIMEOUT = 0.1
    """Seconds that a sign-in waits for one call of the cache."""
    FORGET_TIMEOUT = 1.5
    """Seconds for one `forget`, a connect and a TLS handshake included."""
    QUEUE_TIMEOUT = 1.0
    """Seconds that a call waits for its turn."""

    def __init__(
        self, backend: ClaimsBackend, *, concurrency: int | None = None, now: Callable[[], Instant] = clock.now
    ) -> None:
        self._backend = backend
        self._concurrency = concurrency
        self._now = now
        self._down = _Backoff()
        self._refusing_writes = _Backoff()
        self._owed: dict[str, None] = {}
        """The users who are yet to be forgotten, the oldest first."""
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        """A semaphore for each event loop, as it belongs to one."""
        self._late: set[asyncio.Task[Any]] = set()
        """Calls that were given up: the event loop itself holds its tasks only weakly."""

    async def look_up(self, key: CacheKey) -> Found:
        await self._settle(key.user)
        if key.user in self._owed or self._is_down():
            return _UNKNOWN
        return await self._call(lambda: self._backend.look_up(key), self.CALL_TIMEOUT) or _UNKNOWN

    async def store(self, key: CacheKey, text: str, ttl: float, generation: str | None) -> str | None:
        if generation is None or key.user in self._owed or self._is_refusing_writes():
            return None
        return await self._call(lambda: self._backend.store(key, text, ttl, generation), self.CALL_TIMEOUT, writes=True)

    async def forget(self, user: str) -> None:
        self._owe(user)
        if not await self._forget(user, self.FORGET_TIMEOUT):
            raise CacheUnavailableError("The user's cached claims could not be deleted. Call forget() again.")

    async def forget_soon(self, user: str) -> None:
        self._owe(user)
        await self._settle(user)

    def _owe(self, user: str) -> None:
        self._owed[user] = None
        if len(self._owed) > _OWED_MAX:
            del self._owed[next(iter(self._owed))]

    async def _settle(self, user: str) -> None:
        """Forget one of the users who are yet to be forgotten: this one, if it is among them."""
        if self._owed and not self._is_refusing_writes():
            await self._forget(user if user in self._owed else next(iter(self._owed)), self.CALL_TIMEOUT)

    async def _forget(self, user: str, timeout: float) -> bool:
        done = await self._call(lambda: self._forget_in_backend(user), timeout, writes=True, always=True)
        if done:
            self._owed.pop(user, None)
        return done is not None

    async def _forget_in_backend(self, user: str) -> bool:
        await self._backend.forget(user)
        return True

    def _is_down(self) -> bool:
        return self._down.is_active(self._now())

    def _is_refusing_writes(self) -> bool:
        return self._is_down() or self._refusing_writes.is_active(self._now())

    async def _call(
        self, call: Callable[[], Awaitable[T]], timeout: float, *, writes: bool = False, always: bool = False
    ) -> T | None:
        """Return what `call` returns when it has its turn; None if it fails or has no turn, or the cache is skipped.

        `always`: even if the cache is to be skipped.
        """
        turns = self._turns_here()
        try:
            if turns is not None:
                async with asyncio.timeout(self.QUEUE_TIMEOUT):
                    await turns.acquire()
        except TimeoutError:
            return None
        try:
            if self._is_down() and not always:  # a call before this one has failed
                return None
            return await self._attempt(call, timeout, writes=writes)
        finally:
            if turns is not None:
                turns.release()

    def _turns_here(self) -> asyncio.Semaphore | None:
        if self._concurrency is None:
            return None
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            self._turns[loop] = asyncio.Semaphore(self._concurrency)
        return self._turns[loop]

    async def _attempt(self, call: Callable[[], Awaitable[T]], timeout: float, *, writes: bool) -> T | None:
        failures = self._down.failures + self._refusing_writes.failures
        task = asyncio.create_task(capture(call()))
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        try:
            # In parts, as each ends late if the event loop is busy: that time is not the cache's. And not with
            # asyncio.timeout(): a result that has arrived counts, however late the event loop comes to see it.
            for _ in range(_PARTS):
                await asyncio.wait({task}, timeout=timeout / _PARTS)
                if task.done():
                    break
        finally:
            task.cancel()
        error = task.result().error if task.done() else TimeoutError()
        if error is None:
            self._down.reset()
            if writes:
                self._refusing_writes.reset()
            return task.result().get()
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        if failures == self._down.failures + self._refusing_writes.failures:  # those that fail together count as one
            self._back_off(error, writes=writes)
        return None

    def _back_off(self, error: BaseException, *, writes: bool) -> None:
        refused = writes and isinstance(error, CacheUnavailableError) and error.answered
        seconds = (self._refusing_writes if refused else self._down).extend(self._now())
        # Only the type: a client's text may contain the cache's address.
        told = f"The claims cache failed with {type(error).__name__}."
        if isinstance(error, CacheUnavailableError):
            told = str(error)
        logger.warning("%s %s for %g s.", told, "Nothing is written to it" if refused else "It is skipped", seconds)
