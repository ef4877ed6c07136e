"""Claims that are kept for a while: for the next sign-in, and longer for the day the database is down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncdb_guard.cognito.cache import (
    CacheKey,
    ClaimsCache,
    FailFastCache,
    MemoryCache,
    cache_key,
    stale_key,
    user_key,
)
from asyncdb_guard.cognito.claims import Overrides, restore
from asyncdb_guard.cognito.deadline import BudgetSpentError, Deadline
from asyncdb_guard.cognito.event import TokenRequest
from asyncdb_guard.cognito.shared_cache import SharedCache
from asyncdb_guard.cognito.single_flight import SingleFlight
from asyncdb_guard.errors import DatabaseUnavailableError, DeadlineExceededError
from asyncdb_guard.settings import DatabaseSettings

_STALE = 3600.0
"""Seconds that stale claims are kept, or their time to live, if that is longer."""


class ClaimsStore:
    """A user's claims from the cache, else loaded, once for all who ask; lives as long as its `CognitoTriggers`."""

    def __init__(self, cache: ClaimsCache, *, ttl: float, keep_stale: bool) -> None:
        """`ttl` in seconds; with 0, a load serves those alone who asked while it ran."""
        self._cache = cache
        self._ttl = ttl
        self._keep_stale = keep_stale
        self._single_flight: SingleFlight[tuple[Overrides, bool]] = SingleFlight(_gave_up)

    async def get(
        self, request: TokenRequest, source: str, load: Callable[[], Awaitable[Overrides]], deadline: Deadline
    ) -> tuple[Overrides, bool]:
        """Return the claims, and whether they come from the cache. `source` names what `load` asks."""
        key = cache_key(request, source)

        async def get_or_load(wanted: Callable[[], bool]) -> tuple[Overrides, bool]:
            kept = await self._read(key, request) if self._ttl else None
            if kept is not None:
                return kept, True
            try:
                overrides = await load()
            except DatabaseUnavailableError:
                raise
            except Exception:
                await self._drop_stale(key)
                raise
            if overrides.empty:
                await self._drop_stale(key)
            elif wanted():
                lives = {key: self._ttl}
                if self._keep_stale:
                    lives[stale_key(request, source)] = max(self._ttl, _STALE)
                await self._write(lives, overrides, deadline)
            return overrides, False

        return await self._single_flight.share(key, get_or_load, deadline.bound)

    async def last_known(self, request: TokenRequest, source: str) -> Overrides | None:
        """What this user was last given, not longer ago than stale claims are kept."""
        return await self._read(stale_key(request, source), request) if self._keep_stale else None

    async def forget(self, sub: str) -> None:
        """Drop all that is kept of one user, and keep nothing of the loads in progress."""
        user = user_key(sub)
        self._single_flight.forget(user)
        await self._cache.forget(user)

    async def _read(self, key: CacheKey, request: TokenRequest) -> Overrides | None:
        text = await self._cache.get(key)
        return restore(text, request.user) if text is not None else None

    async def _write(self, lives: dict[CacheKey, float], overrides: Overrides, deadline: Deadline) -> None:
        text = overrides.dump()
        for key, seconds in lives.items():
            if seconds and deadline.remaining:  # a slow cache must not make the answer late
                await self._cache.put(key, text, seconds)

    async def _drop_stale(self, key: CacheKey) -> None:
        # The database has answered, and refused: what it said before must not outlive that.
        if self._keep_stale:
            await self._cache.forget(key.user)


def open_store(settings: DatabaseSettings, cache: ClaimsCache | None, *, keep_stale: bool) -> ClaimsStore:
    """The store that the settings ask for, with the user's own cache if there is one. Raises ConfigurationError."""
    url = settings.claims_cache_url
    if cache is not None:
        cache = FailFastCache(cache)
    elif url is not None:
        cache = FailFastCache(SharedCache(url.get_secret_value()))
    return ClaimsStore(cache or MemoryCache(), ttl=settings.claims_cache_ttl, keep_stale=keep_stale)


def _gave_up(error: BaseException) -> bool:
    return not isinstance(error, Exception) or isinstance(error, (BudgetSpentError, DeadlineExceededError))
