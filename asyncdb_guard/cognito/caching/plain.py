"""A plain `ClaimsCache` as the store uses it."""

from __future__ import annotations

from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.protocol import ClaimsCache, Found

_ONLY_GENERATION = ""


class PlainBackend:
    """A `ClaimsBackend` without generations, over a `ClaimsCache`; lives as long as that one."""

    def __init__(self, cache: ClaimsCache) -> None:
        self._cache = cache

    async def look_up(self, key: CacheKey) -> Found:
        return Found(await self._cache.get(key), _ONLY_GENERATION)

    async def store(self, key: CacheKey, text: str, ttl: float, generation: str | None) -> str | None:
        await self._cache.put(key, text, ttl)
        return generation

    async def forget(self, user: str) -> None:
        await self._cache.forget(user)

    forget_soon = forget
