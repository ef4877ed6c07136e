"""Keeps a slow or failing cache from delaying sign-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.protocol import ClaimsCache
from asyncdb_guard.events import logger

T = TypeVar("T")


class FailFastCache:
    """A `ClaimsCache` in front of one that may be slow or unavailable; lives as long as that one.

    A call that fails, or takes longer than `CALL_TIMEOUT`, counts as a miss. After it the cache is not called for a
    backoff period, which doubles with each consecutive failure, so that few sign-ins wait for a cache that is down.
    `forget` is always attempted.
    """

    CALL_TIMEOUT = 0.1
    """Seconds that a sign-in waits for one call of the cache."""
    FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0
    """Seconds without a call after a failure."""

    def __init__(self, cache: ClaimsCache, *, now: Callable[[], Instant] = clock.now) -> None:
        self._cache = cache
        self._now = now
        self._backoff = 0.0
        self._failed_at: Instant = (0.0, 0.0)

    async def get(self, key: CacheKey) -> str | None:
        return None if self._is_backing_off() else await self._attempt(lambda: self._cache.get(key))

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        if not self._is_backing_off():
            await self._attempt(lambda: self._cache.put(key, value, ttl))

    async def forget(self, user: str) -> None:
        await self._attempt(lambda: self._cache.forget(user))

    def _is_backing_off(self) -> bool:
        return bool(self._backoff) and elapsed(self._failed_at, self._now()) < self._backoff

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        last_failure = self._failed_at
        try:
            async with asyncio.timeout(self.CALL_TIMEOUT):
                result = await call()
        except Exception as error:
            if self._failed_at == last_failure:  # concurrent calls that fail together count as one failure
                self._back_off(error)
            return None
        self._backoff = 0.0
        return result

    def _back_off(self, error: Exception) -> None:
        self._backoff = min(self._backoff * 2 or self.FIRST_BACKOFF, self.MAX_BACKOFF)
        self._failed_at = self._now()
        # Only the type: a client's text may contain the cache's address.
        logger.warning("The claims cache failed with %s. It is skipped for %g s.", type(error).__name__, self._backoff)
