"""Claims that are kept for a while: for the next sign-in, and longer for the day the database is down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncdb_guard.cognito.cache import (
    CacheKey,
    ClaimsCache,
    MemoryCache,
    UnhurriedCache,
    cache_key,
    stale_key,
    user_key,
)
from asyncdb_guard.cognito.claims import Overrides, restore
from asyncdb_guard.cognito.deadline import BudgetSpentError, Deadline
from asyncdb_guard.cognito.event import TokenRequest
from asyncdb_guard.cognito.flights import Flights
from asyncdb_guard.cognito.shared_cache import SharedCache
from asyncdb_guard.errors import ConfigurationError, DatabaseUnavailableError, DeadlineExceededError
from asyncdb_guard.settings import DatabaseSettings

_STALE_FACTOR, _STALE_MOST = 60, 3600.0
"""Stale claims are kept for 60 times their time to live, but not beyond an hour (in seconds)."""


class ClaimsStore:
    """A user's claims from the cache, else loaded, once for all who ask; lives as long as its `CognitoTriggers`."""

    def __init__(self, cache: ClaimsCache | None, *, ttl: float, keep_stale: bool) -> None:
        """`ttl` in seconds. Without a cache every call loads."""
        self._cache = cache
        self._ttl = ttl
        self._keep_stale = keep_stale
        self._flights: Flights[tuple[Overrides, bool]] = Flights(_gave_up)

    async def get(
        self, request: TokenRequest, source: str, load: Callable[[], Awaitable[Overrides]], deadline: Deadline
    ) -> tuple[Overrides, bool]:
        """Return the claims, and whether they come from the cache. `source` names what `load` asks."""
        cache = self._cache
        if cache is None:
            return await load(), False
        key = cache_key(request, source)

        async def get_or_load(wanted: Callable[[], bool]) -> tuple[Overrides, bool]:
            kept = await self._read(cache, key, request)
            if kept is not None:
                return kept, True
            try:
                overrides = await load()
            except DatabaseUnavailableError:
                raise
            except Exception:
                await self._drop_stale(cache, key)
                raise
            if overrides.empty:
                await self._drop_stale(cache, key)
            elif wanted():
                await self._write(cache, key, overrides)
            return overrides, False

        return await self._flights.share(key, get_or_load, deadline.bound)

    async def last_known(self, request: TokenRequest, source: str) -> Overrides | None:
        """What this very request was answered last, not longer ago than stale claims are kept."""
        if self._cache is None:
            return None
        return await self._read(self._cache, stale_key(cache_key(request, source)), request)

    async def forget(self, sub: str) -> None:
        """Drop all that is kept of one user, and keep nothing of the loads in progress."""
        user = user_key(sub)
        self._flights.forget(user)
        if self._cache is not None:
            await self._cache.forget(user)

    async def _read(self, cache: ClaimsCache, key: CacheKey, request: TokenRequest) -> Overrides | None:
        text = await cache.get(key)
        return restore(text, request.user) if text is not None else None

    async def _write(self, cache: ClaimsCache, key: CacheKey, overrides: Overrides) -> None:
        text = overrides.dump()
        await cache.put(key, text, self._ttl)
        if self._keep_stale:
            await cache.put(stale_key(key), text, max(self._ttl, min(self._ttl * _STALE_FACTOR, _STALE_MOST)))

    async def _drop_stale(self, cache: ClaimsCache, key: CacheKey) -> None:
        # The database has answered, and refused: what it said before must not outlive that.
        if self._keep_stale:
            await cache.forget(key.user)


def open_store(settings: DatabaseSettings, cache: ClaimsCache | None, *, keep_stale: bool) -> ClaimsStore:
    """The store that the settings ask for, with the user's own cache if there is one. Raises ConfigurationError."""
    ttl = settings.claims_cache_ttl
    if not ttl:
        if keep_stale:
            raise ConfigurationError(
                'on_unavailable="stale" needs the claims cache, which LAMBDA_DATABASE_CLAIMS_CACHE_TTL_MS=0 turns off.'
            )
        return ClaimsStore(None, ttl=0, keep_stale=False)
    url = settings.claims_cache_url
    if cache is not None:
        cache = UnhurriedCache(cache)
    elif url is not None:
        cache = UnhurriedCache(SharedCache(url.get_secret_value()))
    return ClaimsStore(cache or MemoryCache(), ttl=ttl, keep_stale=keep_stale)


def _gave_up(error: BaseException) -> bool:
    return not isinstance(error, Exception) or isinstance(error, (BudgetSpentError, DeadlineExceededError))
